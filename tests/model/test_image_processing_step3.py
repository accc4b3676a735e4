import json
from pathlib import Path

import numpy as np
import picture_oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from step3.errors import Step3Error
from step3.model.image_processing_step3 import Step3ImageProcessor
from step3.model.pictures import PictureError


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_as_described(features: dict, pictures: list[np.ndarray], **sides: int) -> None:
    wholes, crops, masks = zip(*(picture_oracle.views(picture, **sides) for picture in pictures), strict=True)
    assert features["num_patches"].tolist() == [len(one) for one in crops]
    assert features["patch_newline_mask"].tolist() == [ends for mask in masks for ends in mask]
    for name, expected in (("pixel_values", np.stack(wholes)), ("patch_pixel_values", np.concatenate(crops))):
        # One step of 8 bits is 0.014; float32 places a point among thousands to about 1e-4 of a pixel.
        torch.testing.assert_close(features[name], torch.from_numpy(expected).float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (300, 200), (1100, 400), (120, 700), (729, 729), (20, 500)])
def test_published_sizes_are_seen_as_described(size: tuple[int, int]) -> None:
    picture = noise(*size)
    features = Step3ImageProcessor()(picture, return_tensors="pt")
    assert features["pixel_values"].shape == (1, 3, 728, 728)
    assert features["patch_pixel_values"].shape[1:] == (3, 504, 504)
    assert_as_described(features, [picture])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 1200), st.integers(1, 1200), st.integers(0, 9))
def test_any_size_is_seen_as_described(width: int, height: int, seed: int) -> None:
    picture = noise(width, height, seed)
    sides = {"picture_side": 56, "crop_side": 42}
    features = Step3ImageProcessor(**sides)(picture, return_tensors="pt")
    assert_as_described(features, [picture], **sides)


@pytest.mark.parametrize("size", [(32, 5000), (5000, 32), (3100, 900)])
def test_long_pictures_are_seen_as_described(size: tuple[int, int]) -> None:
    picture = noise(*size)
    sides = {"picture_side": 56, "crop_side": 42}
    assert_as_described(Step3ImageProcessor(**sides)(picture, return_tensors="pt"), [picture], **sides)


def test_several_pictures_follow_each_other() -> None:
    sizes = [(640, 480), (900, 728), (700, 300), (10, 10)]
    pictures = [noise(*size, seed) for seed, size in enumerate(sizes)]
    sides = {"picture_side": 56, "crop_side": 42}
    features = Step3ImageProcessor(**sides)([pictures[:1], pictures[1:]], return_tensors="pt")
    assert features["num_patches"].tolist() == [0, 4, 3, 0]
    assert_as_described(features, pictures, **sides)


def test_one_picture_in_any_guise_is_the_same() -> None:
    array = noise(40, 30)
    processor = Step3ImageProcessor(picture_side=28, crop_side=28)
    expected = processor(array)["pixel_values"]
    guises = [
        Image.fromarray(array),
        array.transpose(2, 0, 1),
        array[None],
        torch.from_numpy(array).permute(2, 0, 1),
        array / 255,
        torch.from_numpy(array).permute(2, 0, 1)[None] / 255,
        [array],
        ([array],),
    ]
    for guise in guises:
        assert torch.equal(processor(guise)["pixel_values"], expected)


def test_types_of_the_features() -> None:
    processor = Step3ImageProcessor(picture_side=28, crop_side=14)
    features = processor(noise(800, 900), return_tensors="pt")
    assert {name: value.dtype for name, value in features.items()} == {
        "pixel_values": torch.float32,
        "patch_pixel_values": torch.float32,
        "num_patches": torch.int64,
        "patch_newline_mask": torch.bool,
    }
    assert set(features) == set(processor.model_input_names)
    assert all(
        isinstance(value, np.ndarray) for value in processor(noise(9, 9), return_tensors="np").values()
    )


def test_features_are_float32_on_the_cpu_whatever_torch_defaults_to() -> None:
    processor = Step3ImageProcessor(picture_side=28, crop_side=14)
    expected = processor(noise(800, 300))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            features = processor(noise(800, 300))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(features[name], expected[name]) for name in expected)


def test_a_picture_without_crops_gives_empty_crops() -> None:
    features = Step3ImageProcessor(crop_side=14)(noise(100, 100), return_tensors="pt")
    assert features["patch_pixel_values"].shape == (0, 3, 14, 14)
    assert features["patch_newline_mask"].shape == (0,)


def test_cropping_can_be_turned_off() -> None:
    assert Step3ImageProcessor(do_crop=False)(noise(800, 800))["num_patches"].tolist() == [0]
    assert Step3ImageProcessor()(noise(800, 800), do_crop=False)["num_patches"].tolist() == [0]


def test_more_pixels_than_allowed_are_refused() -> None:
    processor = Step3ImageProcessor(max_pixels=99)
    with pytest.raises(PictureError, match=r"10 × 10 = 100 pixels, more than the 99"):
        processor(noise(10, 10))


def test_a_thin_picture_that_would_be_padded_beyond_the_limit_is_refused() -> None:
    with pytest.raises(PictureError, match="padded to 20000 × 20000"):
        Step3ImageProcessor()(noise(20_000, 5))


def test_more_crops_than_allowed_are_refused() -> None:
    with pytest.raises(PictureError, match="cut into 159 crops, more than the 100"):
        Step3ImageProcessor(max_crops=100)(noise(32, 5000))


def test_no_picture_is_refused() -> None:
    with pytest.raises(PictureError, match="no picture"):
        Step3ImageProcessor()([])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("picture_side", 0),
        ("crop_side", "504"),
        ("window", 10**9),
        ("pad_under", True),
        ("max_pixels", -1),
        ("max_crops", 1.5),
        ("image_mean", [0.5]),
        ("image_std", [0.1, 0.0, 0.1]),
        ("image_std", ["a", "b", "c"]),
        ("image_mean", None),
        ("do_crop", "no"),
    ],
)
def test_impossible_fields_are_named(field: str, value: object) -> None:
    with pytest.raises(Step3Error, match=field):
        Step3ImageProcessor(**{field: value})


def test_save_and_load_keep_every_field(tmp_path: Path) -> None:
    saved = Step3ImageProcessor(
        picture_side=112, crop_side=56, window=300, image_mean=[0.1, 0.2, 0.3], do_crop=False
    )
    saved.save_pretrained(tmp_path)
    loaded = Step3ImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == saved.to_dict()
    assert (loaded.picture_side, loaded.crop_side, loaded.window, loaded.do_crop) == (112, 56, 300, False)


def test_fields_nested_in_processor_config_are_read(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"picture_side": 112}}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"picture_side": 56}))
    assert Step3ImageProcessor.from_pretrained(tmp_path).picture_side == 112


def test_without_a_file_of_its_own_the_vision_tower_decides(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"vision_config": {"image_size": 112, "enable_patch": False}})
    )
    loaded = Step3ImageProcessor.from_pretrained(tmp_path)
    assert (loaded.picture_side, loaded.crop_side, loaded.do_crop) == (112, 504, False)


def test_fields_given_while_loading_win_and_are_checked(tmp_path: Path) -> None:
    Step3ImageProcessor(picture_side=112).save_pretrained(tmp_path)
    assert Step3ImageProcessor.from_pretrained(tmp_path, picture_side=56).picture_side == 56
    with pytest.raises(Step3Error, match="picture_side"):
        Step3ImageProcessor.from_pretrained(tmp_path, picture_side=-56)


def test_unknown_fields_of_a_file_are_dropped(tmp_path: Path) -> None:
    fields = {"auto_map": {"AutoImageProcessor": "processing.Evil"}, "preprocess": 1, "picture_side": 112}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    loaded = Step3ImageProcessor.from_pretrained(tmp_path)
    assert not {"auto_map", "preprocess"} & set(loaded.to_dict())
    assert loaded(noise(9, 9))["pixel_values"].shape[-1] == 112


def test_a_vision_config_that_is_none_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": "none"}))
    assert Step3ImageProcessor.from_pretrained(tmp_path).picture_side == 728


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 99_999])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(Step3Error, match=r"preprocessor_config\.json"):
        Step3ImageProcessor.from_pretrained(tmp_path)

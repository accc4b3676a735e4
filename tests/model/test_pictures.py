import base64
import io
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from step3.errors import Step3Error
from step3.model import pictures
from step3.model.pictures import PictureError, decode_base64, read_picture

LIMIT = 1_000_000


def colours(width: int = 7, height: int = 5) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def read(source: object, max_pixels: int = LIMIT) -> np.ndarray:
    picture = read_picture(source, max_pixels)  # type: ignore[arg-type]
    assert picture.mode == "RGB"
    return np.asarray(picture)


def gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "TGA", "WEBP"])
def test_files_come_as_paths_and_as_bytes(tmp_path: Path, format: str) -> None:
    data = encoded(Image.fromarray(colours()), format, **({"lossless": True} if format == "WEBP" else {}))
    path = tmp_path / "picture"
    path.write_bytes(data)
    for source in (path, str(path), data, bytearray(data), memoryview(data)):
        assert np.array_equal(read(source), colours())


def test_data_urls() -> None:
    url = "data:image/png;base64," + base64.b64encode(encoded(Image.fromarray(colours()))).decode()
    assert np.array_equal(read(url), colours())
    assert decode_base64("AAEC") == bytes([0, 1, 2])


@pytest.mark.parametrize("text", ["data:image/png,abc", "data:image/png;base64", "not base64!", "AAA", 3])
def test_broken_base64_is_refused(text: object) -> None:
    with pytest.raises(PictureError, match=r"base64"):
        decode_base64(text)  # type: ignore[arg-type]


def test_gray_bilevel_and_palette() -> None:
    values = colours()[..., 0]
    assert np.array_equal(read(Image.fromarray(values)), gray(values))
    assert np.array_equal(read(Image.fromarray(values > 99)), gray(np.where(values > 99, 255, 0)))
    palette = Image.fromarray(values % 4).convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7])
    expected = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]], np.uint8)[values % 4]
    assert np.array_equal(read(encoded(palette)), expected)


def test_transparent_places_become_white() -> None:
    rgba = np.dstack([colours(), np.zeros((5, 7), np.uint8)])
    rgba[0, 0, 3] = 255
    rgba[1, 1] = (0, 0, 0, 128)
    expected = np.full((5, 7, 3), 255, np.uint8)
    expected[0, 0] = rgba[0, 0, :3]
    expected[1, 1] = 127
    for source in (Image.fromarray(rgba), encoded(Image.fromarray(rgba)), rgba):
        assert np.array_equal(read(source), expected)


def test_transparent_gray_palette_and_colour_key_become_white() -> None:
    gray_alpha = np.dstack([np.full((2, 2), 7, np.uint8), np.array([[255, 0], [0, 255]], np.uint8)])
    expected = gray(np.array([[7, 255], [255, 7]], np.uint8))
    assert np.array_equal(read(encoded(Image.fromarray(gray_alpha, "LA"))), expected)
    assert np.array_equal(read(gray_alpha), expected)
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8)).convert("P")
    palette.putpalette([7, 7, 7, 0, 0, 0])
    assert np.array_equal(read(encoded(palette, transparency=1)), expected)
    keyed = Image.fromarray(gray(np.array([[7, 9], [9, 7]], np.uint8)))
    assert np.array_equal(read(encoded(keyed, transparency=(9, 9, 9))), expected)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    expected = gray(np.array([[0, 1, 128, 255]], np.uint8))
    for source in (
        Image.fromarray(values),
        encoded(Image.fromarray(values)),
        values,
        values.astype(np.int32),
    ):
        assert np.array_equal(read(source), expected)
    assert np.array_equal(read(Image.fromarray(values.astype(np.int32))), expected)
    assert Image.open(io.BytesIO(encoded(Image.fromarray(values)))).mode.startswith("I")


def test_dark_sixteen_bits_stay_dark() -> None:
    assert read(np.full((2, 2), 200, np.uint16)).max() == 1
    assert read(np.full((2, 2), 200, np.int64)).max() == 200


def test_cmyk_and_ycbcr() -> None:
    cmyk = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    assert np.array_equal(read(cmyk)[0, 0], (255, 0, 0))
    for mode in ("CMYK", "YCbCr", "HSV"):
        image = Image.fromarray(colours()).convert(mode)
        assert np.array_equal(read(image), np.asarray(image.convert("RGB")))


def test_a_mode_without_a_way_to_rgb_is_refused() -> None:
    with pytest.raises(PictureError, match="mode La"):
        read(Image.new("La", (2, 2)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation: int) -> None:
    upright = colours()
    transposed = upright.transpose(1, 0, 2)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: transposed,
        6: transposed[::-1],
        7: transposed[::-1, ::-1],
        8: transposed[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert np.array_equal(read(data), upright)
    assert np.array_equal(read(Image.open(io.BytesIO(data))), upright)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_exif_leaves_the_picture_as_it_is() -> None:
    data = encoded(Image.fromarray(colours()), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert np.array_equal(read(data), colours())


def test_the_first_frame_of_an_animation_is_read() -> None:
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(read(data)[0, 0], (255, 0, 0))


def test_floats_are_of_one_or_of_255() -> None:
    values = colours()[..., 0]
    assert np.array_equal(read(values / 255), gray(values))
    assert np.array_equal(read(Image.fromarray(values.astype(np.float32))), gray(values))
    assert np.array_equal(read(torch.from_numpy(values / 255).bfloat16()[None]).shape, (5, 7, 3))
    assert np.array_equal(read(np.array([[0.0, 0.5, 1.0]]))[0, :, 0], (0, 128, 255))


def test_channels_are_last_in_an_array_and_first_in_a_tensor() -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    assert np.array_equal(read(array), array)
    assert np.array_equal(read(torch.from_numpy(array)), array.transpose(1, 2, 0))
    assert np.array_equal(read(colours().transpose(2, 0, 1)), colours())
    assert np.array_equal(read(torch.from_numpy(colours())), colours())


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 5, 5)), "channels"),
        (np.zeros(9), "dimensions"),
        (np.zeros((0, 4, 3)), "no pixels"),
        (np.full((2, 2), np.nan), "float"),
        (np.full((2, 2), -0.1), "float"),
        (np.full((2, 2), 256.0), "float"),
        (np.full((2, 2), -1), "values"),
        (np.full((2, 2), 65536), "values"),
        (np.full((2, 2), 1j), "numbers"),
        (np.full((2, 2), "a"), "numbers"),
    ],
)
def test_arrays_that_are_no_picture_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(PictureError, match=message):
        read(array)


def test_other_types_are_refused() -> None:
    with pytest.raises(PictureError, match="found int"):
        read(3)


def test_the_size_is_checked_before_decoding() -> None:
    # A header alone: decoding it would fail in another way.
    header = encoded(Image.new("1", (5000, 5000)))[:60]
    with pytest.raises(PictureError, match=r"5000 × 5000 = 25,000,000 pixels, more than the 1,000,000"):
        read(header)


def test_a_bomb_beyond_pils_own_limit_is_refused() -> None:
    data = bytearray(encoded(Image.new("1", (8, 8))))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(PictureError, match="too large"):
        read(bytes(data))


def test_an_icon_larger_than_its_header_says_is_refused() -> None:
    inside = encoded(Image.new("RGB", (64, 64)))
    entry = bytes([8, 8, 0, 0, 1, 0, 32, 0]) + len(inside).to_bytes(4, "little") + (22).to_bytes(4, "little")
    icon = b"\0\0\1\0\1\0" + entry + inside
    with pytest.warns(UserWarning, match="expected size"), pytest.raises(PictureError, match="64 × 64"):
        read(icon, max_pixels=1000)


def test_an_opened_file_that_is_cut_short_is_refused() -> None:
    data = encoded(Image.fromarray(colours(99, 99)))
    for source in (data[:2000], Image.open(io.BytesIO(data[:2000]))):
        with pytest.raises(PictureError, match="cannot decode the picture"):
            read(source)


def test_large_images_and_arrays_are_refused_too() -> None:
    for source in (Image.new("RGB", (10, 10)), np.zeros((10, 10, 3), np.uint8), torch.zeros(3, 10, 10)):
        with pytest.raises(PictureError, match="more than the 99"):
            read(source, max_pixels=99)


def test_formats_that_start_other_programs_are_not_opened() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(PictureError, match="not a picture in a known format"):
        read(postscript)


def test_missing_files_directories_and_odd_names_are_named(tmp_path: Path) -> None:
    for name in (tmp_path / "none.png", tmp_path, "a\0b"):
        with pytest.raises(PictureError, match="cannot read the picture"):
            read(name)
    with pytest.raises(PictureError) as raised:
        read("A" * 10_000)
    assert len(str(raised.value)) < 400


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_files_fail_cleanly_or_decode(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "ICO"]))
    whole = bytearray(encoded(Image.fromarray(colours(33, 21)), format))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    try:
        assert read(bytes(cut)).ndim == 3
    except Step3Error as error:
        assert str(error)  # noqa: PT017 (either outcome is right, any other error is not)


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/picture.png" else 404)
            self.end_headers()
            if self.path == "/picture.png":
                self.wfile.write(encoded(Image.fromarray(colours())))

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_urls_are_downloaded(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert np.array_equal(read(f"{server}/picture.png"), colours())
    with pytest.raises(PictureError, match=r"none\.png.*404"):
        read(f"{server}/none.png")
    monkeypatch.setattr(pictures, "MAX_DOWNLOAD_BYTES", 20)
    with pytest.raises(PictureError, match="is over"):
        read(f"{server}/picture.png")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/none", "http://[broken/", "https://"])
def test_urls_that_lead_nowhere_are_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(PictureError, match="cannot download the picture http"):
        read(url)

"""Pictures: encoded once, kept within bounds, and put in place wherever a chunk cuts them."""

import pytest
import torch
from engine_requests import golden_cases, golden_picture, golden_prompt, make_llm, shared_llm
from PIL import Image

from step3 import LLM, SamplingParams
from step3.engine.pictures import PictureEncoder, picture_digest
from step3.engine.request import Sequence

PICTURE = golden_picture(120, 80, 0)
FEATURE_BYTES = 169 * 128 * 4


@pytest.fixture(scope="module")
def llm() -> LLM:
    return shared_llm("vl")


def encoder(llm: LLM, max_bytes: int = 1 << 30) -> PictureEncoder:
    own = llm.engine.lanes[0]._builder._pictures
    assert own is not None
    return PictureEncoder(own._tower, own._processor, max_bytes)


def sequence(llm: LLM, *pictures: Image.Image) -> Sequence:
    prompt = {"prompt": "a" + "<im_patch>b" * len(pictures), "multi_modal_data": {"image": list(pictures)}}
    return llm._model.intake.request(prompt, SamplingParams()).sequences[0]


def test_the_digest_knows_size_and_mode() -> None:
    same = Image.new("RGB", (4, 6)), Image.new("RGB", (6, 4)), Image.new("L", (12, 6))
    assert len({image.tobytes() for image in same}) == 1
    assert len({picture_digest(image) for image in same}) == 3


def test_a_picture_seen_before_is_not_encoded_again(llm: LLM) -> None:
    own, one, other = encoder(llm), sequence(llm, PICTURE), sequence(llm, PICTURE.copy())
    first = own.features(one.request.pictures[0])
    assert own.features(other.request.pictures[0]) is first
    assert (own.encoded, own.reused) == (1, 1)


def test_what_was_used_longest_ago_goes_first(llm: LLM) -> None:
    own = encoder(llm, max_bytes=2 * FEATURE_BYTES)
    pictures = sequence(llm, *(golden_picture(60 + i, 60, 0) for i in range(3))).request.pictures
    for number in (0, 1, 0, 2):
        own.features(pictures[number])
    assert (own.encoded, own.reused) == (3, 1)
    own.features(pictures[0])
    assert own.encoded == 3
    own.features(pictures[1])
    assert own.encoded == 4


def test_features_larger_than_the_bound_are_not_kept(llm: LLM) -> None:
    own, one = encoder(llm, max_bytes=FEATURE_BYTES - 1), sequence(llm, PICTURE)
    for _ in range(2):
        own.features(one.request.pictures[0])
    assert own.encoded == 2


@pytest.mark.parametrize("size", [1, 7, 50, 171, 400])
def test_chunks_of_any_size_put_every_feature_in_its_place(llm: LLM, size: int) -> None:
    own, one = encoder(llm), sequence(llm, PICTURE, golden_picture(90, 90, 1))
    filled = torch.zeros(len(one.tokens), 128)
    for start in range(0, len(one.tokens), size):
        end = min(start + size, len(one.tokens))
        for places, features in own.rows(one, start, end):
            assert places.min() >= 0
            assert places.max() < end - start
            filled[start + torch.from_numpy(places)] = features
    for picture in one.request.pictures:
        assert torch.equal(filled[picture.places], own.features(picture))
    places = sum(len(picture.places) for picture in one.request.pictures)
    assert int((filled != 0).any(-1).sum()) == places


def test_a_picture_is_held_while_it_is_being_filled_in(llm: LLM) -> None:
    own, one = encoder(llm, max_bytes=0), sequence(llm, PICTURE)
    for start in range(0, len(one.tokens), 20):
        own.rows(one, start, start + 20)
    assert own.encoded == 1
    assert one.features == {}


def test_equals_the_network_in_transformers(llm: LLM) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = str(llm.config.model)
    model = AutoModelForImageTextToText.from_pretrained(folder, torch_dtype=torch.float32)
    picture = golden_picture(729, 729, 0)
    inputs = AutoProcessor.from_pretrained(folder)(images=[picture], text="<im_patch>", return_tensors="pt")
    assert int(inputs["num_patches"][0]) == 4
    with torch.inference_mode():
        [expected] = model.get_image_features(
            inputs["pixel_values"], inputs["patch_pixel_values"], inputs["num_patches"]
        )
        got = encoder(llm).features(sequence(llm, picture).request.pictures[0])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_an_engine_encodes_a_picture_once_for_many_requests() -> None:
    llm, prompt = make_llm("vl", enable_prefix_caching=False), golden_prompt(golden_cases("vl")[0])
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    outputs = llm.generate([prompt] * 4, params, use_tqdm=False)
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == 1
    pictures = llm.engine.lanes[0]._builder._pictures
    assert pictures is not None
    assert (pictures.encoded, pictures.reused) == (1, 3)


def test_a_cached_prefix_needs_no_encoding() -> None:
    llm, prompt = make_llm("vl"), golden_prompt(golden_cases("vl")[0])
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    first, second = (llm.generate(prompt, params, use_tqdm=False)[0] for _ in range(2))
    assert second.outputs[0].token_ids == first.outputs[0].token_ids
    pictures = llm.engine.lanes[0]._builder._pictures
    assert pictures is not None
    assert (pictures.encoded, pictures.reused) == (1, 0)


def test_another_picture_in_the_same_place_is_another_answer(llm: LLM) -> None:
    case = golden_cases("vl")[0]
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=5)

    def best(seed: int) -> float:
        prompt = {"prompt": case["prompt"], "multi_modal_data": {"image": golden_picture(300, 200, seed)}}
        answer = llm.generate(prompt, params, use_tqdm=False)[0].outputs[0]
        assert answer.logprobs is not None
        return next(iter(answer.logprobs[0].values())).logprob

    assert best(0) == pytest.approx(case["logprobs"][0], abs=2e-3)
    assert best(5) != pytest.approx(best(0), abs=1e-4)
    assert best(0) == pytest.approx(case["logprobs"][0], abs=2e-3)

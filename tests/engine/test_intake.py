"""What is refused before it takes resources, and how prompts become requests."""

from typing import Any

import numpy as np
import pytest
from engine_requests import golden_picture, make_llm, shared_llm, text_of
from PIL import Image

from step3 import LLM, SamplingParams
from step3.engine.config import EngineConfig
from step3.engine.intake import Intake
from step3.engine.loading import Loaded
from step3.engine.prompts import Prompt
from step3.engine.request import RequestError
from step3.engine.sampling.errors import ParamsError
from step3.model.pictures import PictureError

PATCH = 7
SMALL = Image.new("RGB", (40, 40))


def loaded(llm: LLM) -> Loaded:
    return llm._model


@pytest.fixture(scope="module")
def text() -> Intake:
    return loaded(shared_llm("text")).intake


@pytest.fixture(scope="module")
def sees() -> Intake:
    return loaded(make_llm("vl", limit_mm_per_prompt={"image": 2})).intake


BAD_PROMPTS: dict[str, tuple[Prompt, str]] = {
    "empty text": ("", "the prompt is empty"),
    "no tokens": ([], "the prompt is empty"),
    "an id below": ([5, -1], "holds token -1, but the vocabulary goes from 0 to 511"),
    "an id above": ([5, 512], "holds token 512"),
    "a huge id": ([10**30], "holds token 1000000"),
    "no whole numbers": ([5, 1.5], "must be a list of whole numbers"),
    "truth values": ([True], "must be a list of whole numbers"),
    "nothing": ({}, 'must be text, token ids, or hold "prompt"'),
    "not text": ({"prompt": 5}, 'must be text, token ids, or hold "prompt"'),
    "an unknown field": ({"prompt": "a", "prompts": "b"}, "no field 'prompts'"),
    "too many tokens": (
        [5] * 1024,
        "has at least 1,024 tokens, but prompt and answer together can have 1,024",
    ),
    "a long text": ("a" * 10_000_000, "the prompt has 10,000,000 characters"),
    "a picture for the blind": (
        {"prompt": "a", "multi_modal_data": {"image": SMALL}},
        "no vision tower",
    ),
    "a video": ({"prompt": "a", "multi_modal_data": {"video": 1}}, "multi_modal_data must look like"),
    "an empty salt": ({"prompt": "a", "cache_salt": ""}, "cache_salt must be a text"),
    "a salt that is no text": ({"prompt": "a", "cache_salt": 5}, "cache_salt must be a text"),
}


@pytest.mark.parametrize(("prompt", "message"), BAD_PROMPTS.values(), ids=BAD_PROMPTS)
def test_refuses_a_bad_prompt(text: Intake, prompt: Prompt, message: str) -> None:
    with pytest.raises(RequestError) as error:
        text.request(prompt, SamplingParams())
    assert message in str(error.value)


def pictures(count: int, prompt: str) -> Prompt:
    return {"prompt": prompt, "multi_modal_data": {"image": [SMALL] * count}}


BAD_PICTURES: dict[str, tuple[Prompt, str]] = {
    "typed by a user": ("what is <im_patch>?", "has 1 <im_patch>, but 0 pictures are given"),
    "among ids": ([5, PATCH], "has 1 <im_patch>, but 0 pictures are given"),
    "one too few": (pictures(1, "<im_patch><im_patch>"), "has 2 <im_patch>, but 1 pictures"),
    "one too many": (pictures(2, "<im_patch>"), "has 1 <im_patch>, but 2 pictures"),
    "more than allowed": (pictures(3, "<im_patch>" * 3), "has 3 pictures, 2 are allowed"),
}


@pytest.mark.parametrize(("prompt", "message"), BAD_PICTURES.values(), ids=BAD_PICTURES)
def test_refuses_pictures_that_do_not_fit_the_prompt(sees: Intake, prompt: Prompt, message: str) -> None:
    with pytest.raises(RequestError) as error:
        sees.request(prompt, SamplingParams())
    assert message in str(error.value)


def test_refuses_a_picture_that_cannot_be_read(sees: Intake) -> None:
    with pytest.raises(PictureError):
        sees.request({"prompt": "<im_patch>", "multi_modal_data": {"image": b"no picture"}}, SamplingParams())


def test_refuses_pictures_that_make_the_prompt_too_long() -> None:
    intake = loaded(make_llm("vl", max_model_len=200)).intake
    with pytest.raises(RequestError, match="max_model_len"):
        intake.request(pictures(1, "<im_patch>" + "a b " * 40), SamplingParams())
    with pytest.raises(RequestError, match="at least 340 tokens"):
        intake.request(pictures(2, "<im_patch><im_patch>"), SamplingParams())


@pytest.mark.parametrize(
    "options",
    [
        {"logit_bias": {512: 1.0}},
        {"stop_token_ids": [600]},
        {"allowed_token_ids": [9999]},
        {"logprobs": 21},
        {"prompt_logprobs": 500},
        {"logprobs": -1},
    ],
)
def test_refuses_parameters_that_the_model_does_not_have(text: Intake, options: dict[str, Any]) -> None:
    with pytest.raises(ParamsError):
        text.request("a", SamplingParams(**options))


def test_refuses_a_priority_that_is_no_number(text: Intake) -> None:
    with pytest.raises(RequestError, match="priority must be a whole number"):
        text.request("a", SamplingParams(), priority=1.5)  # type: ignore[arg-type]


def test_refuses_to_go_on_with_several_answers(text: Intake) -> None:
    with pytest.raises(RequestError, match="n = 1"):
        text.request("a", SamplingParams(n=2), output_token_ids=[5])


def test_refuses_answers_that_would_fill_the_memory(text: Intake) -> None:
    with pytest.raises(RequestError, match="ask for fewer answers"):
        text.request([5] * 1000, SamplingParams(n=16384))


def test_refuses_a_name_that_is_no_text(text: Intake) -> None:
    with pytest.raises(RequestError, match="request_id must be text"):
        text.request("a", SamplingParams(), request_id=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("output", [[512], [-1], ["a"], [1.5]])
def test_refuses_to_go_on_from_what_the_model_cannot_have_said(text: Intake, output: list[Any]) -> None:
    with pytest.raises(RequestError, match="output_token_ids must be token ids from 0 to 511"):
        text.request("a", SamplingParams(), output_token_ids=output)


def test_takes_any_kind_of_integer_list(text: Intake) -> None:
    for ids in ([5, 6], (5, 6), {"prompt_token_ids": np.array([5, 6])}):
        assert text.request(ids, SamplingParams()).prompt_token_ids == [5, 6]


def test_keeps_the_end_of_a_prompt_that_is_to_be_cut(text: Intake) -> None:
    ids = [*range(20, 420)] * 5
    cut = text.request(ids, SamplingParams(truncate_prompt_tokens=3))
    assert cut.prompt_token_ids == ids[-3:]
    cut = text.request(ids, SamplingParams(truncate_prompt_tokens=-1))
    assert cut.prompt_token_ids == ids[-1023:]


def test_refuses_to_cut_a_prompt_with_pictures(sees: Intake) -> None:
    with pytest.raises(RequestError, match="leave truncate_prompt_tokens out"):
        sees.request(pictures(1, "<im_patch>"), SamplingParams(truncate_prompt_tokens=50))


def test_puts_marks_and_places_where_a_picture_stands(sees: Intake) -> None:
    picture = golden_picture(1200, 500, 0)
    prompt: Prompt = {"prompt": "<im_patch>", "multi_modal_data": {"image": picture}}
    request = sees.request(prompt, SamplingParams())
    processor = loaded(shared_llm("vl")).tokens.processor
    assert processor is not None
    expected = processor(images=[picture], text="<im_patch>")["input_ids"][0]
    assert request.prompt_token_ids == list(expected)
    [placed] = request.pictures
    assert (placed.start, placed.end) == (0, len(expected))
    assert [request.prompt_token_ids[i] for i in placed.places] == [PATCH] * expected.count(PATCH)


def test_pictures_may_stand_among_ids(sees: Intake) -> None:
    prompt: Prompt = {"prompt_token_ids": [20, PATCH, 21], "multi_modal_data": {"image": SMALL}}
    request = sees.request(prompt, SamplingParams())
    assert (request.prompt_token_ids[0], request.prompt_token_ids[-1]) == (20, 21)
    assert request.prompt_token_ids.count(PATCH) == 169


def test_equal_pictures_have_equal_digests_and_others_have_not(sees: Intake) -> None:
    def digest(picture: Image.Image) -> bytes:
        prompt: Prompt = {"prompt": "<im_patch>", "multi_modal_data": {"image": picture}}
        return sees.request(prompt, SamplingParams()).pictures[0].digest

    assert digest(Image.new("RGB", (20, 30))) == digest(Image.new("RGB", (20, 30)))
    # The same bytes in another shape.
    assert digest(Image.new("RGB", (20, 30))) != digest(Image.new("RGB", (30, 20)))


def test_a_seed_is_drawn_from_the_engines_for_who_brings_none() -> None:
    def seeds(engine_seed: int) -> list[int]:
        model = loaded(shared_llm("text"))
        config = EngineConfig(seed=engine_seed)
        intake = Intake(config, model.engine.network, model.tokens, 1024)
        return [intake.request("a", SamplingParams()).sequences[0].sampling.seed for _ in range(3)]

    assert len(set(seeds(0))) == 3
    assert seeds(0) == seeds(0)
    assert not set(seeds(0)) & set(seeds(1))


def test_the_text_of_what_was_generated_is_there_again(text: Intake) -> None:
    tokenizer = shared_llm("text").get_tokenizer()
    output = tokenizer.encode("import os", add_special_tokens=False)
    request = text.request("a", SamplingParams(), output_token_ids=output)
    assert text_of(request.sequences[0]) == "import os"
    assert request.sequences[0].output_token_ids == output


def test_each_of_several_answers_goes_on_from_its_own_tokens(text: Intake) -> None:
    params = SamplingParams(n=2, seed=1, max_tokens=8)
    request = text.request("a", params, output_token_ids=[[30, 31], []])
    assert [one.output_token_ids for one in request.sequences] == [[30, 31], []]
    with pytest.raises(RequestError, match="1 rows for 2 answers"):
        text.request("a", params, output_token_ids=[[30]])

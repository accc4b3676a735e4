"""Answers of a given form, from the request to its end."""

import asyncio
import json
from typing import Any

import pytest
from engine_requests import GOLDEN, make_llm, shared_llm

from step3 import LLM, AsyncLLM, SamplingParams, StructuredOutputsParams
from step3.engine.outputs import RequestOutput
from step3.engine.sampling.errors import ConstraintError

pytest.importorskip("xgrammar")

THINK, END_OF_THINK = 11, 12
CHOICE = StructuredOutputsParams(choice=["yes", "no"])


@pytest.fixture(scope="module")
def llm() -> LLM:
    return make_llm("text")


def answer(llm: LLM, form: StructuredOutputsParams | None, prompt: Any, **options: Any) -> RequestOutput:
    params = SamplingParams(**{"temperature": 0, "max_tokens": 60, "structured_outputs": form, **options})
    return llm.generate(prompt, params, use_tqdm=False)[0]


def test_an_answer_has_the_form_that_was_asked_for(llm: LLM) -> None:
    got = answer(llm, CHOICE, [5, 6, 8]).outputs[0]
    assert got.text in ("yes", "no")
    assert got.finish_reason == "stop"


def test_each_of_a_batch_has_its_own_form(llm: LLM) -> None:
    forms = [CHOICE, StructuredOutputsParams(regex="[0-9]{3}"), None]
    params = [SamplingParams(temperature=0, max_tokens=9, structured_outputs=form) for form in forms]
    choice, digits, free = llm.generate([[5, 6, 8]] * 3, params, use_tqdm=False)
    assert choice.outputs[0].text in ("yes", "no")
    assert len(digits.outputs[0].text) == 3
    assert digits.outputs[0].text.isdigit()
    assert free.outputs[0].token_ids == answer(llm, None, [5, 6, 8], max_tokens=9).outputs[0].token_ids


def test_json_can_be_read(llm: LLM) -> None:
    schema = {
        "type": "object",
        "properties": {"open": {"type": "boolean"}},
        "required": ["open"],
        "additionalProperties": False,
    }
    got = answer(llm, StructuredOutputsParams(json=schema), [5, 6, 8]).outputs[0]
    assert isinstance(json.loads(got.text)["open"], bool)


def test_reasoning_that_the_prompt_has_opened_is_free(llm: LLM) -> None:
    free = answer(llm, None, [5, THINK], max_tokens=9, ignore_eos=True).outputs[0]
    reasoning = answer(llm, CHOICE, [5, THINK], max_tokens=9, ignore_eos=True).outputs[0]
    assert reasoning.token_ids == free.token_ids
    ended = answer(llm, CHOICE, [5, THINK, 6, END_OF_THINK]).outputs[0]
    assert ended.text in ("yes", "no")


def test_a_form_that_cannot_be_compiled_fails_its_request_alone(llm: LLM) -> None:
    bad = StructuredOutputsParams(grammar="this is no grammar")
    params = [SamplingParams(temperature=0, max_tokens=5, structured_outputs=form) for form in (bad, None)]
    failed, good = llm.generate([[5], [6]], params, use_tqdm=False)
    assert failed.outputs[0].finish_reason == "error"
    assert failed.error
    assert failed.outputs[0].token_ids == []
    assert good.outputs[0].finish_reason == "length"
    llm.engine.assert_consistent()
    assert not llm.engine.has_requests


def test_a_stream_hears_that_its_form_cannot_be_compiled() -> None:
    async def ask() -> None:
        llm = AsyncLLM(str(GOLDEN / "text"), max_model_len=128)
        params = SamplingParams(structured_outputs=StructuredOutputsParams(grammar="this is no grammar"))
        try:
            async for _ in llm.generate([5], params):
                raise AssertionError("nothing can be answered")
        finally:
            llm.shutdown()

    with pytest.raises(ConstraintError):
        asyncio.run(asyncio.wait_for(ask(), 60))


def test_an_answer_goes_on_within_its_form(llm: LLM) -> None:
    form = StructuredOutputsParams(regex="[0-9]{8}")
    whole = answer(llm, form, [5, 6, 8]).outputs[0]
    params = SamplingParams(temperature=0, max_tokens=60, structured_outputs=form)
    request = llm._model.intake.request([5, 6, 8], params, output_token_ids=whole.token_ids[:3])
    llm.engine.add(request)
    while llm.engine.has_requests:
        llm.engine.step()
        llm.engine.wait_for_grammar()
    assert request.sequences[0].output_token_ids == whole.token_ids


def test_a_request_can_be_given_up_while_its_form_is_compiled() -> None:
    llm = shared_llm("text")
    request = llm._model.intake.request([5], SamplingParams(structured_outputs=CHOICE))
    llm.engine.add(request)
    llm.engine.abort(request.id)
    assert not llm.engine.has_requests
    assert request.sequences[0].finish_reason == "abort"
    assert llm.engine.step().advanced == []

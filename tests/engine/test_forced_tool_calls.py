"""Tool calls that are demanded, and forms that go wrong on the way, from the request to its end."""

import re
from typing import Any

import pytest
from engine_requests import make_llm

from step3 import LLM, SamplingParams, StructuredOutputsParams
from step3.engine.outputs import RequestOutput
from step3.engine.sampling import structured
from step3.engine.sampling.grammar import GrammarConstraint
from step3.engine.sampling.tool_grammar import tool_call_form

pytest.importorskip("xgrammar")

THINK, END_OF_THINK = 11, 12
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Rome", "Oslo"]},
        "days": {"type": "integer", "maximum": 9, "minimum": 1},
    },
    "required": ["city", "days"],
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now"}},
]
CALL = re.compile(
    "<｜tool_calls_begin｜>\n<｜tool_call_begin｜>function<｜tool_sep｜>"
    '<steptml:invoke name="weather">\n'
    '<steptml:parameter name="city">(Rome|Oslo)</steptml:parameter>\n'
    '<steptml:parameter name="days">[1-9]</steptml:parameter>\n'
    "</steptml:invoke><｜tool_call_end｜>\n<｜tool_calls_end｜>"
)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return make_llm("text", speculative_config={"method": "ngram", "num_speculative_tokens": 3})


def ask(llm: LLM, form: StructuredOutputsParams | None, prompt: list[int], **options: Any) -> RequestOutput:
    params = SamplingParams(
        **{"structured_outputs": form, "max_tokens": 400, "skip_special_tokens": False, "seed": 1, **options}
    )
    return llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)[0]


@pytest.mark.parametrize("seed", range(4))
def test_a_named_tool_is_called_whatever_the_model_would_say(llm: LLM, seed: int) -> None:
    answer = ask(llm, tool_call_form(TOOLS, "weather"), [5, 6, 7], seed=seed).outputs[0]
    assert answer.finish_reason == "stop"
    assert CALL.fullmatch(answer.text.lstrip("\n"))


def test_the_call_comes_behind_the_reasoning(llm: LLM) -> None:
    # The bias ends the reasoning at once, and has no say within the call.
    form = tool_call_form(TOOLS, "weather")
    answer = ask(llm, form, [5, THINK], logit_bias={END_OF_THINK: 50.0}).outputs[0]
    reasoning, _, call = answer.text.partition("</think>")
    assert reasoning == ""
    assert CALL.fullmatch(call.lstrip("\n"))


def test_a_form_that_becomes_too_slow_ends_its_own_request(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = GrammarConstraint.advance

    def tiring(self: GrammarConstraint, token_id: int) -> bool:
        if self._inside == 3:
            self.failure = "the form of the output takes too long"
        return advance(self, token_id)

    monkeypatch.setattr(GrammarConstraint, "advance", tiring)
    monkeypatch.setattr(structured, "_probe", lambda *_: None)
    params = [
        SamplingParams(structured_outputs=form, max_tokens=12, temperature=0, ignore_eos=True)
        for form in (StructuredOutputsParams(regex="[a-z]{30}"), None)
    ]
    slow, free = llm.generate([{"prompt_token_ids": [5, 6]}] * 2, params, use_tqdm=False)
    assert slow.outputs[0].finish_reason == "error"
    assert "takes too long" in str(slow.error)
    assert free.outputs[0].finish_reason == "length"
    llm.engine.assert_consistent()


def test_parameters_that_allow_nothing_end_their_own_request(llm: LLM) -> None:
    params = [
        SamplingParams(
            allowed_token_ids=[30], logit_bias={30: 0.0}, min_tokens=2, stop_token_ids=[30], max_tokens=4
        ),
        SamplingParams(max_tokens=4, ignore_eos=True),
    ]
    nothing, free = llm.generate([{"prompt_token_ids": [5, 6]}] * 2, params, use_tqdm=False)
    assert nothing.outputs[0].finish_reason == "error"
    assert "the parameters allow none" in str(nothing.error)
    assert len(free.outputs[0].token_ids) == 4

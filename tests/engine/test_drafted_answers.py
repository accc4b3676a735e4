"""Speculation through the engine: each answer is what it is without, and drafts that are right save steps."""

from typing import Any

import pytest
from engine_requests import golden_cases, golden_prompt, make_llm

from step3 import LLM, SamplingParams, StructuredOutputsParams
from step3.engine.sampling.speculation import StepTime, StepTimes

DRAFTS = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 1}
PROMPTS = [[7, 8, 9, 10] * 12, [100 + i % 7 for i in range(60)], [5, 6], list(range(30, 70)) * 2]
PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 0.8, "top_p": 0.9, "seed": 3, "n": 2},
    "penalised": {"temperature": 0.5, "seed": 4, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
    "bounded": {
        "temperature": 0,
        "min_tokens": 20,
        "stop_token_ids": list(range(0, 500, 3)),
        "logit_bias": {9: 3.0},
    },
    "formed": {"temperature": 1.0, "seed": 5, "structured_outputs": {"regex": "(ab)*(no){1,3}(abc){9}"}},
}


@pytest.fixture(scope="module")
def plain() -> LLM:
    return make_llm("text")


@pytest.fixture
def rows_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """All drafts are tried, whatever the machine's clock says."""
    monkeypatch.setattr(StepTimes, "estimate", lambda self: StepTime(1.0, 0.0))


Answer = tuple[list[int], str, str | None, Any, list[float]]


def answers(llm: LLM, prompts: list[list[int]], **options: Any) -> list[Answer]:
    params = SamplingParams(**{"max_tokens": 40, "ignore_eos": True, "logprobs": 1, **options})
    told: list[Answer] = []
    for output in llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False):
        for one in output.outputs:
            assert one.logprobs is not None
            places = zip(one.logprobs, one.token_ids, strict=True)
            logprobs = [place[token].logprob for place, token in places]
            told.append((one.token_ids, one.text, one.finish_reason, one.stop_reason, logprobs))
    return told


def assert_same(got: list[Answer], expected: list[Answer]) -> None:
    assert [one[:4] for one in got] == [one[:4] for one in expected]
    for one, other in zip(got, expected, strict=True):
        assert one[4] == pytest.approx(other[4], abs=1e-4)


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.usefixtures("rows_are_free")
def test_drafts_change_no_answer(plain: LLM, name: str) -> None:
    expected = answers(plain, PROMPTS, **PARAMS[name])
    for options in ({}, {"max_num_batched_tokens": 20}, {"enable_prefix_caching": False}):
        llm = make_llm("text", speculative_config=DRAFTS, **options)
        assert_same(answers(llm, PROMPTS, **PARAMS[name]), expected)
        assert llm.get_statistics().speculation.drafted > 20
        llm.engine.assert_consistent()


@pytest.mark.usefixtures("rows_are_free")
def test_drafts_change_nothing_where_sequences_are_thrown_out(plain: LLM) -> None:
    few = 10 * plain.engine.memory.block_bytes
    llm = make_llm("text", speculative_config=DRAFTS, kv_cache_memory_bytes=few, max_model_len=128)
    assert_same(answers(llm, PROMPTS, temperature=0), answers(plain, PROMPTS, temperature=0))
    assert llm.get_statistics().preemptions > 0
    llm.engine.assert_consistent()


@pytest.mark.usefixtures("rows_are_free")
def test_the_golden_answers_are_given_with_drafts() -> None:
    llm, cases = make_llm("text", speculative_config=DRAFTS), golden_cases("text")
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    outputs = llm.generate([golden_prompt(case) for case in cases], params, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in outputs] == [case["token_ids"] for case in cases]


@pytest.mark.usefixtures("rows_are_free")
def test_drafts_that_are_right_save_steps(plain: LLM) -> None:
    form = StructuredOutputsParams(regex="(yes, no, ){40}")
    llm = make_llm("text", speculative_config=DRAFTS)
    computed = []
    for one in (plain, llm):
        before = one.get_statistics().computed_tokens
        [(token_ids, *_)] = answers(one, [[5, 6]], temperature=0, max_tokens=150, structured_outputs=form)
        computed.append(one.get_statistics().computed_tokens - before)
    speculation = llm.get_statistics().speculation
    assert speculation.accepted > 50
    # A row for each token of prompt and answer but the last, and one for each draft that was wrong.
    assert computed[0] == 2 + len(token_ids) - 1
    assert computed[1] == computed[0] + speculation.drafted - speculation.accepted


def test_without_the_option_nothing_is_drafted(plain: LLM) -> None:
    answers(plain, PROMPTS, temperature=0)
    assert plain.get_statistics().speculation.drafted == 0


def test_drafts_stop_where_rows_are_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepTimes, "estimate", lambda self: StepTime(0.1, 1.0))
    llm = make_llm("text", speculative_config=DRAFTS)
    answers(llm, PROMPTS, temperature=0)
    assert llm.get_statistics().speculation.drafted == 0

"""Deployments in processes of their own answer as one process does."""

from collections.abc import Iterator

import pytest
from deployments import PATIENCE, Stream, is_whole, kill, pid_of, start, until
from engine_requests import golden_cases, golden_prompt, make_llm, shared_llm

from step3 import LLM, SamplingParams, StructuredOutputsParams
from step3.cluster.config import ClusterError
from step3.engine.request import RequestError
from step3.kernels.cpu import open_library

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=5)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    one = start("2A2F", "vl", max_model_len=2048)
    yield one
    one.shutdown()


def test_golden_answers_with_and_without_pictures(llm: LLM) -> None:
    cases = golden_cases("vl")
    outputs = llm.generate([golden_prompt(case) for case in cases], GREEDY, use_tqdm=False)
    for case, output in zip(cases, outputs, strict=True):
        answer = output.outputs[0]
        assert len(output.prompt_token_ids) == case["num_prompt_tokens"]
        assert answer.token_ids == case["token_ids"]
        assert answer.logprobs is not None
        told = [place[token].logprob for place, token in zip(answer.logprobs, answer.token_ids, strict=True)]
        assert told == pytest.approx(case["logprobs"], abs=2e-3)


def test_outputs_are_those_of_one_process(llm: LLM) -> None:
    params = [
        SamplingParams(n=3, temperature=1.0, seed=5, max_tokens=12, logprobs=2, prompt_logprobs=1),
        SamplingParams(temperature=0, max_tokens=40, stop=["e"], min_tokens=3),
        SamplingParams(temperature=0.7, seed=2**63, max_tokens=9, repetition_penalty=1.3, logit_bias={30: 5}),
    ]
    prompts = ["Once upon a time", "The cat", "Tell me"]
    here = shared_llm("vl").generate(prompts, params, use_tqdm=False)
    there = llm.generate(prompts, params, use_tqdm=False)
    for one, other in zip(here, there, strict=True):
        assert one.prompt == other.prompt
        assert one.prompt_token_ids == other.prompt_token_ids
        for a, b in zip(one.outputs, other.outputs, strict=True):
            assert (a.text, a.token_ids, a.finish_reason, a.stop_reason) == (
                b.text,
                b.token_ids,
                b.finish_reason,
                b.stop_reason,
            )
            if a.cumulative_logprob is not None:
                assert a.cumulative_logprob == pytest.approx(b.cumulative_logprob, abs=2e-3)
                assert len(a.logprobs) == len(b.logprobs)
        assert (one.prompt_logprobs is None) == (other.prompt_logprobs is None)


def test_an_answer_has_the_form_that_was_asked_for(llm: LLM) -> None:
    pytest.importorskip("xgrammar")
    form = StructuredOutputsParams(choice=["yes", "no"])
    params = SamplingParams(temperature=0, max_tokens=9, structured_outputs=form)
    [output] = llm.generate("Is it?", params, use_tqdm=False)
    assert output.outputs[0].text in ("yes", "no")


def test_what_cannot_be_answered_is_refused_before_anything_is_computed(llm: LLM) -> None:
    with pytest.raises(RequestError, match="prompt 1"):
        llm.generate(["a", {"prompt_token_ids": [10**6]}], GREEDY, use_tqdm=False)


def test_several_answers_to_one_prompt_survive(llm: LLM) -> None:
    until(lambda: is_whole(llm, 2, 2), "the deployment's start")
    params = SamplingParams(n=3, temperature=1.0, seed=5, max_tokens=150, ignore_eos=True, logprobs=0)

    def answer(disturb: bool) -> tuple[str, list[int]]:
        stream = Stream(llm, [5, 6, 8], params)
        until(lambda: len(stream.tokens) > 20, "the first tokens")
        if disturb:
            for number in (0, 1):
                kill(pid_of(llm, "attention", number))
        assert stream.ended.wait(PATIENCE)
        assert stream.error is None
        # The three answers come in turns, whose order may differ.
        return "".join(sorted(stream.text)), sorted(stream.tokens)

    assert answer(disturb=False) == answer(disturb=True)


def test_instances_join_and_leave_while_it_serves(llm: LLM) -> None:
    until(lambda: is_whole(llm, 2, 2), "the deployment's start")
    with pytest.raises(ClusterError, match="FFN instance 0 is the last instance of shard 0"):
        llm.cluster.change("drain", "ffn", 0)
    with pytest.raises(ClusterError, match="no ffn instance 7"):
        llm.cluster.change("drain", "ffn", 7)
    with pytest.raises(ClusterError, match="no shard 2"):
        llm.cluster.change("add", "ffn", 2)
    assert llm.cluster.change("add", "ffn", 0) == "ffn 2 is being started"
    until(lambda: is_whole(llm, 2, 3), "the replica's start")
    stream = Stream(llm, [5, 6, 8], SamplingParams(temperature=0, max_tokens=200, ignore_eos=True))
    llm.cluster.change("drain", "ffn", 0)
    llm.cluster.change("drain", "attention", 0)
    until(lambda: len(llm.cluster.describe()["ffn"]) == 2, "the FFN instance's leaving")
    until(lambda: len(llm.cluster.describe()["attention"]) == 1, "the attention instance's leaving")
    assert stream.ended.wait(PATIENCE)
    [alone] = shared_llm("vl").generate(
        [[5, 6, 8]], SamplingParams(temperature=0, max_tokens=200, ignore_eos=True), use_tqdm=False
    )
    assert stream.tokens == alone.outputs[0].token_ids


def test_a_trace_shows_all_instances(llm: LLM) -> None:
    stream = Stream(llm, [5, 6, 8], SamplingParams(temperature=0, max_tokens=400, ignore_eos=True))
    trace = llm.cluster.trace(0.3)
    assert stream.ended.wait(PATIENCE)
    names = {event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name"}
    assert any(name.startswith("attention") for name in names)
    assert any(name.startswith("ffn") for name in names)
    stages = {event["name"] for event in trace["traceEvents"] if event["ph"] == "X"}
    assert stages == {"attention", "wire", "waiting", "ffn"}


@pytest.mark.skipif(open_library() is None, reason="the CPU kernels are not there")
def test_instances_use_the_weights_from_their_files() -> None:
    prompts = [{"prompt_token_ids": case["prompt_token_ids"]} for case in golden_cases("text-fp8")]
    here = make_llm("text-fp8", dtype="bfloat16").generate(prompts, GREEDY, use_tqdm=False)
    with start("1A1F", "text-fp8", dtype="bfloat16", load="mmap") as llm:
        assert llm.cluster.memory.mapped > 0
        there = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [one.outputs[0].token_ids for one in there] == [one.outputs[0].token_ids for one in here]

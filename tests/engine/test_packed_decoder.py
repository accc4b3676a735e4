"""Whole answers on the CPU kernels, on each level that this processor has, and without any."""

from typing import Any

import pytest
import torch
from engine_requests import golden_cases, make_llm

from step3 import SamplingParams
from step3.engine import engine as engine_module
from step3.engine import lane as lane_module
from step3.engine.decoder import Decoder
from step3.engine.packed_decoder import PackedDecoder
from step3.ffn import shard as shard_module
from step3.kernels.cpu import LEVELS, open_library
from step3.kernels.cpu.library import supported_levels

PARAMS = SamplingParams(temperature=0, max_tokens=1, logprobs=20, prompt_logprobs=0)
TEXT_CASES = {name: golden_cases(name) for name in ("text", "text-fp8")}


def use(monkeypatch: pytest.MonkeyPatch, level: str | None) -> None:
    """Engines of this test are made with that level's kernels, or with torch alone."""
    if level is not None and (level not in supported_levels() or open_library(level) is None):
        pytest.skip(f"no kernels for {level} here")
    found = None if level is None else open_library(level)
    for module in (engine_module, shard_module):
        monkeypatch.setattr(module, "open_library", lambda: found)


def furthest(llm: Any, cases: list[dict[str, Any]]) -> float:
    """From the golden log-probabilities of the best first tokens."""
    worst = 0.0
    for case in cases:
        [output] = llm.generate({"prompt_token_ids": case["prompt_token_ids"]}, PARAMS, use_tqdm=False)
        found = output.outputs[0].logprobs[0]
        told = case["first_top5"].items()
        worst = max(worst, *(abs(found[int(token)].logprob - logprob) for token, logprob in told))
    return worst


@pytest.mark.parametrize("level", list(LEVELS))
@pytest.mark.parametrize("checkpoint", ["text", "text-fp8"])
def test_answers_stay_close_to_float32(monkeypatch: pytest.MonkeyPatch, checkpoint: str, level: str) -> None:
    use(monkeypatch, level)
    llm = make_llm(checkpoint, dtype=torch.bfloat16)
    assert isinstance(llm.engine.lanes[0]._decoder, PackedDecoder)
    assert furthest(llm, TEXT_CASES[checkpoint]) < 0.05


def test_keys_and_values_in_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, next(iter(supported_levels()), "avx2"))
    llm = make_llm("text", dtype=torch.bfloat16, kv_cache_dtype="fp8")
    assert isinstance(llm.engine.lanes[0]._decoder, PackedDecoder)
    assert furthest(llm, TEXT_CASES["text"]) < 0.3


def test_torch_computes_where_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, None)
    llm = make_llm("text", dtype=torch.bfloat16)
    assert isinstance(llm.engine.lanes[0]._decoder, Decoder)
    assert furthest(llm, TEXT_CASES["text"]) < 0.1


@pytest.mark.parametrize("options", [{"block_size": 8}, {"kv_cache_dtype": "float32"}, {"dtype": "float32"}])
def test_torch_computes_what_the_kernels_cannot(options: dict[str, Any]) -> None:
    llm = make_llm("text", **{"dtype": torch.bfloat16, **options})
    assert isinstance(llm.engine.lanes[0]._decoder, Decoder)
    assert furthest(llm, TEXT_CASES["text"][:1]) < 0.1


def test_chunks_batches_and_cached_prefixes_change_little(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, next(iter(supported_levels()), "avx2"))
    prompts = [{"prompt_token_ids": case["prompt_token_ids"]} for case in TEXT_CASES["text"]]
    whole = make_llm("text", dtype=torch.bfloat16)
    cut = make_llm("text", dtype=torch.bfloat16, max_num_batched_tokens=24, block_size=32)
    for _ in range(2):
        for first, second in zip(
            whole.generate(prompts, PARAMS, use_tqdm=False),
            cut.generate(prompts, PARAMS, use_tqdm=False),
            strict=True,
        ):
            one, other = first.outputs[0].logprobs[0], second.outputs[0].logprobs[0]
            for token in one.keys() & other.keys():
                assert one[token].logprob == pytest.approx(other[token].logprob, abs=0.05)


@pytest.mark.parametrize("checkpoint", ["text", "text-fp8"])
def test_all_layers_in_one_call_give_what_they_give_by_turns(checkpoint: str) -> None:
    cases = TEXT_CASES[checkpoint]
    prompts = [{"prompt_token_ids": case["prompt_token_ids"]} for case in cases]
    params = SamplingParams(temperature=0, max_tokens=8, logprobs=5)
    answers = []
    for calls in ("one", "many"):
        llm = make_llm(checkpoint, dtype=torch.bfloat16)
        decoder = llm.engine.lanes[0]._decoder
        if not isinstance(decoder, PackedDecoder):
            pytest.skip("no kernels here")
        assert decoder._holds_ffns
        decoder._holds_ffns = calls == "one"
        outputs = llm.generate(prompts, params, use_tqdm=False)
        answers.append([(one.outputs[0].token_ids, one.outputs[0].logprobs) for one in outputs])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("level", list(LEVELS))
@pytest.mark.parametrize("checkpoint", ["text", "text-fp8"])
def test_long_prompts_do_not_depend_on_the_threads(
    monkeypatch: pytest.MonkeyPatch, checkpoint: str, level: str
) -> None:
    """With two threads each takes half of the tokens up to attention, with eight all share them."""
    use(monkeypatch, level)
    prompt = {"prompt_token_ids": [20 + i * i % 100 for i in range(600)]}
    answers, before = [], torch.get_num_threads()
    for threads in (2, 8):
        torch.set_num_threads(threads)
        try:
            [output] = make_llm(checkpoint, dtype=torch.bfloat16).generate(prompt, PARAMS, use_tqdm=False)
        finally:
            torch.set_num_threads(before)
        answers.append(output.outputs[0].logprobs)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("calls", ["one", "many"])
@pytest.mark.parametrize(
    "options", [{}, {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}}]
)
def test_greedy_answers_are_the_same_with_and_without_logits(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], calls: str
) -> None:
    # With the same beginning over and over drafts prove right at times.
    prompts = [{"prompt_token_ids": case["prompt_token_ids"][:200] * 2} for case in TEXT_CASES["text"]]
    llm = make_llm("text", dtype=torch.bfloat16, max_num_batched_tokens=64, **options)
    decoder = llm.engine.lanes[0]._decoder
    if not isinstance(decoder, PackedDecoder):
        pytest.skip("no kernels here")
    decoder._holds_ffns = calls == "one"
    with_logits = SamplingParams(temperature=0, max_tokens=12, logprobs=0)
    expected = llm.generate(prompts, with_logits, use_tqdm=False)
    monkeypatch.setattr(lane_module, "sample", None)
    found = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=12), use_tqdm=False)
    for one, other in zip(found, expected, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids


def test_a_token_that_is_no_number_ends_its_own_request_alone() -> None:
    llm = make_llm("text", dtype=torch.bfloat16)
    decoder = llm.engine.lanes[0]._decoder
    if not isinstance(decoder, PackedDecoder):
        pytest.skip("no kernels here")
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    [expected] = llm.generate([[8, 9]], params, use_tqdm=False)
    decoder._network.embedding[5] = torch.nan
    bad, good = llm.generate([[6, 5], [8, 9]], params, use_tqdm=False)
    assert bad.outputs[0].finish_reason == "error"
    assert "NaN" in (bad.error or "")
    assert good.error is None
    assert good.outputs[0].token_ids == expected.outputs[0].token_ids
    llm.engine.assert_consistent()

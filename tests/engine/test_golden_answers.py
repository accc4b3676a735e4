"""The golden answers through the engine, however requests are batched, cut, cached and thrown out."""

from typing import Any

import pytest
import torch
from engine_requests import golden_cases, golden_prompt, make_llm, shared_llm
from PIL import Image

from step3 import LLM, SamplingParams
from step3.engine.outputs import RequestOutput
from step3.engine.pictures import PictureEncoder, picture_digest

CHECKPOINTS = ("text", "text-fp8", "vl")
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=5)
TOLERANCE = 2e-3
FEATURES: dict[bytes, torch.Tensor] = {}

# All in one batch; what is forced upon them.
FORCED: dict[str, dict[str, Any]] = {
    "in one batch": {},
    "in chunks of 64 tokens": {"max_num_batched_tokens": 64},
    "without prefix cache": {"enable_prefix_caching": False},
}


@pytest.fixture(autouse=True)
def encode_each_picture_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model here has the same tower, and encoding is what takes time."""
    encode = PictureEncoder._encode

    def remembered(self: PictureEncoder, image: Image.Image) -> torch.Tensor:
        key = picture_digest(image)
        if key not in FEATURES:
            FEATURES[key] = encode(self, image)
        return FEATURES[key]

    monkeypatch.setattr(PictureEncoder, "_encode", remembered)


def check(case: dict[str, Any], output: RequestOutput) -> None:
    answer = output.outputs[0]
    assert len(output.prompt_token_ids) == case["num_prompt_tokens"]
    assert answer.token_ids == case["token_ids"]
    assert answer.logprobs is not None
    told = [place[token].logprob for place, token in zip(answer.logprobs, answer.token_ids, strict=True)]
    assert told == pytest.approx(case["logprobs"], abs=TOLERANCE)
    best = {token: entry.logprob for token, entry in answer.logprobs[0].items()}
    assert best == pytest.approx({int(t): v for t, v in case["first_top5"].items()}, abs=TOLERANCE)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_alone_and_again_from_the_prefix_cache(checkpoint: str) -> None:
    llm = shared_llm(checkpoint)
    for case in golden_cases(checkpoint):
        check(case, llm.generate(golden_prompt(case), GREEDY, use_tqdm=False)[0])
        again = llm.generate(golden_prompt(case), GREEDY, use_tqdm=False)[0]
        assert again.num_cached_tokens == (case["num_prompt_tokens"] - 1) // 16 * 16
        check(case, again)
    llm.engine.assert_consistent()


@pytest.mark.parametrize("options", FORCED.values(), ids=FORCED)
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_in_one_batch(checkpoint: str, options: dict[str, Any]) -> None:
    llm, cases = make_llm(checkpoint, **options), golden_cases(checkpoint)
    outputs = llm.generate([golden_prompt(case) for case in cases], GREEDY, use_tqdm=False)
    for case, output in zip(cases, outputs, strict=True):
        check(case, output)
    llm.engine.assert_consistent()


def block_bytes(llm: LLM) -> int:
    return llm.engine.memory.block_bytes


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_with_so_few_blocks_that_sequences_are_thrown_out(checkpoint: str, prefix_caching: bool) -> None:
    cases = golden_cases(checkpoint)
    longest = max(case["num_prompt_tokens"] for case in cases) + 24
    one_token = block_bytes(shared_llm(checkpoint)) // 16
    llm = make_llm(
        checkpoint,
        block_size=1,
        max_model_len=longest,
        kv_cache_memory_bytes=longest * one_token,
        enable_prefix_caching=prefix_caching,
    )
    # Short ones fill the blocks beside each long one, so that there is no room to grow.
    short = [{"prompt_token_ids": [5, 6, 8, *range(20, 24 + i)]} for i in range(8)]
    prompts = [prompt for case in cases for prompt in (golden_prompt(case), short.pop())]
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    for case, output in zip(cases, outputs[::2], strict=True):
        check(case, output)
    assert llm.get_statistics().preemptions > 0
    llm.engine.assert_consistent()


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_prompts_have_the_same_log_probabilities(checkpoint: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    llm, cases = shared_llm(checkpoint), golden_cases(checkpoint)
    outputs = llm.generate([golden_prompt(case) for case in cases], params, use_tqdm=False)
    for case, output in zip(cases, outputs, strict=True):
        assert output.prompt_logprobs is not None
        assert output.prompt_logprobs[0] is None
        tokens = zip(output.prompt_logprobs[1:], output.prompt_token_ids[1:], strict=True)
        total = sum(place[token].logprob for place, token in tokens if place is not None)
        assert total == pytest.approx(case["prompt_logprob_sum"], abs=TOLERANCE)


@pytest.mark.parametrize("kv_cache_dtype", ["bfloat16", "fp8"])
def test_narrow_keys_and_values_stay_close(kv_cache_dtype: str) -> None:
    llm = make_llm("text", kv_cache_dtype=kv_cache_dtype)
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=20, prompt_logprobs=0)
    furthest = {"bfloat16": 0.02, "fp8": 0.3}[kv_cache_dtype]
    for case in golden_cases("text"):
        [output] = llm.generate(golden_prompt(case), params, use_tqdm=False)
        assert output.outputs[0].logprobs is not None
        found = output.outputs[0].logprobs[0]
        for token, logprob in case["first_top5"].items():
            assert found[int(token)].logprob == pytest.approx(logprob, abs=furthest)


def test_fp8_takes_half_the_memory_of_bfloat16() -> None:
    narrow, wide = (make_llm("text", kv_cache_dtype=dtype) for dtype in ("fp8", "bfloat16"))
    assert block_bytes(narrow) * 2 == block_bytes(wide)


def test_in_bfloat16_answers_stay_close() -> None:
    llm = make_llm("text", dtype=torch.bfloat16)
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=20)
    for case in golden_cases("text"):
        [output] = llm.generate(golden_prompt(case), params, use_tqdm=False)
        assert output.outputs[0].logprobs is not None
        found = output.outputs[0].logprobs[0]
        for token, logprob in case["first_top5"].items():
            assert found[int(token)].logprob == pytest.approx(logprob, abs=0.1)

"""A request's answer is the same to the last bit whatever else runs, and however its prompt was cut."""

import random
from functools import cache
from typing import Any

import pytest
from engine_requests import make_llm

from step3 import SamplingParams
from step3.engine.outputs import RequestOutput

CASES = [("text", "float32"), ("text", "bfloat16"), ("text-fp8", "float32"), ("text-fp8", "bfloat16")]
OPTIONS: dict[str, dict[str, Any]] = {
    "all in one batch": {},
    "in chunks of 64 tokens": {"max_num_batched_tokens": 64},
    "with drafts": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}},
}


@cache
def asked() -> tuple[list[dict[str, Any]], list[SamplingParams]]:
    """Greedy and drawn answers to prompts of all lengths, some of which begin alike."""
    chance = random.Random(0)
    common = [chance.randrange(5, 500) for _ in range(40)]
    prompts, params = [], []
    for i in range(12):
        own = [chance.randrange(5, 500) for _ in range(chance.randrange(1, 190))]
        prompts.append({"prompt_token_ids": common + own if i % 3 == 0 else own})
        temperature, tokens = chance.choice([0.0, 1.0]), chance.randrange(10, 40)
        params.append(
            SamplingParams(temperature=temperature, seed=i, max_tokens=tokens, ignore_eos=True, logprobs=0)
        )
    return prompts, params


def told(output: RequestOutput) -> list[tuple[int, float]]:
    answer = output.outputs[0]
    assert answer.logprobs is not None
    places = zip(answer.token_ids, answer.logprobs, strict=True)
    return [(token, place[token].logprob) for token, place in places]


@cache
def alone(checkpoint: str, dtype: str) -> list[list[tuple[int, float]]]:
    llm = make_llm(checkpoint, dtype=dtype, enable_prefix_caching=False)
    return [told(llm.generate(*one, use_tqdm=False)[0]) for one in zip(*asked(), strict=True)]


@pytest.mark.parametrize(("checkpoint", "dtype"), CASES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_together_as_alone(checkpoint: str, dtype: str, options: dict[str, Any]) -> None:
    llm = make_llm(checkpoint, dtype=dtype, **options)
    outputs = llm.generate(*asked(), use_tqdm=False)
    assert [told(output) for output in outputs] == alone(checkpoint, dtype)


@pytest.mark.parametrize(("checkpoint", "dtype"), CASES)
def test_thrown_out_and_computed_again_as_undisturbed(checkpoint: str, dtype: str) -> None:
    block_bytes = make_llm(checkpoint, dtype=dtype, max_model_len=320).engine.memory.block_bytes
    llm = make_llm(checkpoint, dtype=dtype, max_model_len=320, kv_cache_memory_bytes=24 * block_bytes)
    outputs = llm.generate(*asked(), use_tqdm=False)
    assert llm.get_statistics().preemptions > 0
    assert [told(output) for output in outputs] == alone(checkpoint, dtype)

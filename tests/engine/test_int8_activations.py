"""`int8_activations`: prompts through products of 8-bit integers."""

from typing import Any

import pytest
import torch
from engine_requests import GOLDEN, golden_cases, make_llm

from step3 import SamplingParams
from step3.checkpoint import Checkpoint
from step3.engine import engine as engine_module
from step3.engine.config import EngineError
from step3.errors import Step3Error
from step3.ffn import FFNShard
from step3.ffn import shard as shard_module
from step3.kernels.cpu import INTEGER_LEVELS, open_library

PARAMS = SamplingParams(temperature=0, max_tokens=1, logprobs=20)
needs_int8 = pytest.mark.skipif(
    all(open_library(level) is None for level in INTEGER_LEVELS[8]),
    reason="this processor has no products of 8-bit integers",
)


def first_logprobs(prompts: list[Any], **options: Any) -> list[dict[int, float]]:
    llm = make_llm("text-fp8", dtype="bfloat16", **options)
    outputs = llm.generate(prompts, PARAMS, use_tqdm=False)
    return [{t: one.logprob for t, one in output.outputs[0].logprobs[0].items()} for output in outputs]


@needs_int8
@pytest.mark.parametrize("load", ["packed", "mmap"])
def test_answers_stay_close(load: str) -> None:
    # Together they are rows enough, though some alone are not.
    prompts = [{"prompt_token_ids": case["prompt_token_ids"]} for case in golden_cases("text-fp8")]
    exact, rounded = (first_logprobs(prompts, load=load, int8_activations=on) for on in (False, True))
    assert exact != rounded
    apart = torch.tensor(
        [
            one[token] - other[token]
            for one, other in zip(exact, rounded, strict=True)
            for token in one.keys() & other.keys()
        ]
    )
    assert apart.square().mean().sqrt() < 0.1


@needs_int8
def test_decoding_a_few_sequences_is_as_exact_as_ever() -> None:
    prompts = [{"prompt_token_ids": case["prompt_token_ids"][:4]} for case in golden_cases("text-fp8")[:3]]
    exact, same = (first_logprobs(prompts, int8_activations=on) for on in (False, True))
    assert exact == same


def test_needs_block_fp8() -> None:
    with pytest.raises(EngineError, match="not in block-fp8: `step3 quantize`"):
        make_llm("text", dtype="bfloat16", int8_activations=True)


def test_needs_the_kernels() -> None:
    with pytest.raises(EngineError, match=r"for the CPU kernels.*dtype is float32"):
        make_llm("text-fp8", dtype="float32", int8_activations=True)


def test_needs_a_processor_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    if (library := open_library("avx2")) is None:
        pytest.skip("no kernels for avx2 here")
    for module in (engine_module, shard_module):
        monkeypatch.setattr(module, "open_library", lambda: library)
    with pytest.raises(EngineError, match=r"needs a processor for avx512_bf16.*this is avx2"):
        make_llm("text-fp8", dtype="bfloat16", int8_activations=True)


def test_an_ffn_shard_says_so_too() -> None:
    """Attention may be on another device, and know nothing of the FFN instances' processors."""
    with pytest.raises(Step3Error, match="not in block-fp8"):
        FFNShard.load(Checkpoint.open(GOLDEN / "text"), torch.bfloat16, integers=8)

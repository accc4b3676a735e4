"""`batch_invariant=False` lets answers depend on what is computed beside them, on AVX2."""

from typing import Any

import pytest
import torch
from engine_requests import golden_cases, make_llm

from step3 import SamplingParams
from step3.engine import engine as engine_module
from step3.ffn import shard as shard_module
from step3.kernels.cpu import INTEGER_LEVELS, LEVELS, open_library

PARAMS = SamplingParams(temperature=0, max_tokens=4, logprobs=20)
CHECKPOINTS = ["text", "text-fp8"]
TILE = 12
"""Rows that are multiplied as they are."""


@pytest.fixture(params=list(LEVELS))
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if (library := open_library(request.param)) is None:
        pytest.skip(f"no kernels for {request.param} here")
    for module in (engine_module, shard_module):
        monkeypatch.setattr(module, "open_library", lambda: library)
    return request.param


def prompts(checkpoint: str) -> list[Any]:
    """Few tokens each, and many together."""
    return [{"prompt_token_ids": case["prompt_token_ids"][:8]} for case in golden_cases(checkpoint)]


def logprobs(outputs: list[Any]) -> list[list[dict[int, float]]]:
    return [
        [{token: one.logprob for token, one in place.items()} for place in output.outputs[0].logprobs]
        for output in outputs
    ]


def beside_each_other_and_alone(checkpoint: str, **options: Any) -> list[list[list[dict[int, float]]]]:
    llm = make_llm(checkpoint, dtype="bfloat16", enable_prefix_caching=False, **options)
    given = prompts(checkpoint)
    lengths = [len(one["prompt_token_ids"]) for one in given]
    assert max(lengths) <= TILE < sum(lengths)
    together = llm.generate(given, PARAMS, use_tqdm=False)
    alone = [llm.generate(one, PARAMS, use_tqdm=False)[0] for one in given]
    return [logprobs(together), logprobs(alone)]


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("load", ["packed", "mmap"])
def test_an_answer_is_the_same_to_its_last_bit(level: str, checkpoint: str, load: str) -> None:
    together, alone = beside_each_other_and_alone(checkpoint, load=load)
    assert together == alone


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_only_avx2_makes_use_of_it(level: str, checkpoint: str) -> None:
    together, alone = beside_each_other_and_alone(checkpoint, batch_invariant=False)
    if level not in INTEGER_LEVELS[16]:
        assert together == alone
        return
    apart = torch.tensor(
        [
            one[token] - other[token]
            for one, other in zip(
                (answer[0] for answer in together), (answer[0] for answer in alone), strict=True
            )
            for token in one.keys() & other.keys()
        ]
    )
    assert 0 < apart.square().mean().sqrt() < 0.02

"""How far the CPU kernels' log-probabilities are from float32's, with the same tokens in front of both.

    python benchmarks/accuracy.py CHECKPOINT --against CHECKPOINT
    python benchmarks/accuracy.py BLOCK_FP8 --int8-activations --level avx512_bf16

Prompts are drawn from a seed. Told are the root mean square of the differences over the tokens that float32
finds likeliest, and in how many places the likeliest token is the same; for every level of kernels that this
processor has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from step3 import LLM, SamplingParams
from step3.checkpoint import Checkpoint
from step3.kernels.cpu import library

PROMPT = 102
"""Tokens of a prompt; behind each but the last a distribution is told."""


def log_probabilities(llm: LLM, prompts: Sequence[list[int]], vocabulary: int) -> Tensor:
    """`[places, vocabulary]` float32, of all places of all prompts but their first."""
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=vocabulary)
    rows = []
    for output in llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False):
        assert output.prompt_logprobs is not None
        for told in output.prompt_logprobs[1:]:
            assert told is not None
            row = torch.full((vocabulary,), -torch.inf)
            row[list(told)] = torch.tensor([one.logprob for one in told.values()])
            rows.append(row)
    return torch.stack(rows)


def main(
    checkpoint: Annotated[Path, typer.Argument(help="What the kernels compute.")],
    against: Annotated[Path | None, typer.Option(help="What float32 computes; without it the same.")] = None,
    prompts: Annotated[int, typer.Option(help=f"Prompts of {PROMPT} tokens.")] = 10,
    likeliest: Annotated[int, typer.Option(help="Tokens of a place whose differences count.")] = 20,
    kv_cache_dtype: Annotated[str, typer.Option(help="auto or fp8.")] = "auto",
    int8_activations: Annotated[bool, typer.Option(help="8-bit activations.")] = False,
    batch_invariant: Annotated[bool, typer.Option(help="Off: 16-bit integers on AVX2.")] = True,
    level: Annotated[str | None, typer.Option(help="Of kernels; without it all that run here.")] = None,
) -> None:
    """Compare the log-probabilities of drawn prompts."""
    levels = [level] if level else library.supported_levels()
    options: dict[str, Any] = {"quiet": True, "enable_prefix_caching": False, "max_model_len": 256}
    options["kv_cache_memory_bytes"] = 256 << 20
    exact = LLM(str(against or checkpoint), dtype="float32", max_logprobs=1 << 20, **options)
    vocabulary = Checkpoint.open(checkpoint).config.text.vocab_size
    chance = Random(0)
    drawn = [[chance.randrange(20, vocabulary) for _ in range(PROMPT + 1)] for _ in range(prompts)]
    expected = log_probabilities(exact, drawn, vocabulary)
    del exact
    best = expected.topk(likeliest, -1).indices
    table = Table(
        "kernels", "rms of log-probabilities", "same likeliest token", title=f"{len(expected)} places"
    )
    supported = library.supported_levels
    for name in levels:
        library.supported_levels = lambda name=name: [name] if name in supported() else []
        library.open_library.cache_clear()
        llm = LLM(
            str(checkpoint),
            dtype="bfloat16",
            max_logprobs=1 << 20,
            kv_cache_dtype=kv_cache_dtype,
            int8_activations=int8_activations,
            batch_invariant=batch_invariant,
            **options,
        )
        got = log_probabilities(llm, drawn, vocabulary)
        error = (got - expected).gather(-1, best).square().mean().sqrt()
        same = (got.argmax(-1) == expected.argmax(-1)).float().mean()
        table.add_row(name, f"{error:.4f}", f"{same:.1%}")
    Console(width=100).print(table)


if __name__ == "__main__":
    typer.run(main)

"""Draws of tokens with the compiled library (draw.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from step3.kernels.cpu.library import Library, num_threads


def draw_tokens(
    library: Library,
    logits: Tensor,
    best: Tensor,
    temperature: Tensor,
    seeds: Tensor,
    streams: Tensor,
    positions: Tensor,
    block: int,
) -> Tensor:
    """Draws a token of each row from softmax(logits / temperature).

    Args:
        logits: `[rows, vocab]` float32.
        best: `[rows]` float32, the largest of each row.
        temperature: `[rows]` float32, above 0.
        seeds, streams, positions: `[rows]` int64; the random numbers are a function of them.
        block: ids that are drawn from together at first; what is drawn depends on it.

    Returns:
        `[rows]` int64; 0 where the best logit is not finite.
    """
    rows, vocab = logits.shape
    logits, best, temperature = logits.contiguous(), best.contiguous(), temperature.contiguous()
    seeds, streams, positions = seeds.contiguous(), streams.contiguous(), positions.contiguous()
    tokens = torch.empty(rows, dtype=torch.int64)
    library.c.step3_draw(
        num_threads(),
        logits.data_ptr(),
        rows,
        vocab,
        block,
        best.data_ptr(),
        temperature.data_ptr(),
        seeds.data_ptr(),
        streams.data_ptr(),
        positions.data_ptr(),
        tokens.data_ptr(),
    )
    return tokens


def likeliest(library: Library, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row of `[rows, vocab]` float32 and its token, the first of equals.

    Returns:
        `[rows]` float32, NaN where the row has one, and `[rows]` int64.
    """
    rows, vocab = logits.shape
    logits = logits.contiguous()
    best, tokens = torch.empty(rows), torch.empty(rows, dtype=torch.int64)
    library.c.step3_likeliest(
        num_threads(), logits.data_ptr(), rows, vocab, best.data_ptr(), tokens.data_ptr()
    )
    return best, tokens

"""What a step begins with (beginning.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from step3.kernels.cpu.library import Library, num_threads


class Beginning:
    """Tokens' embeddings, and the angles that queries and keys are rotated by, in one call.

    After a step little of what Python and torch need is left in the caches: there each of their operations
    takes a hundred microseconds and more.

    Args:
        embedding: `[vocabulary, hidden]` bfloat16.
        frequencies: `[head_dim / 2]` float32.
        factor: of cosines and sines.
    """

    def __init__(self, library: Library, embedding: Tensor, frequencies: Tensor, factor: float) -> None:
        self._library, self._factor = library, factor
        self._embedding = embedding.to(torch.bfloat16).contiguous()
        self._frequencies = frequencies.float().contiguous()

    def of(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[tokens]` int64 both → hidden states `[tokens, hidden]`, cosines and sines `[tokens, half]`."""
        count, half, width = len(tokens), len(self._frequencies), self._embedding.shape[1]
        hidden, cos, sin = torch.empty(count, width), torch.empty(count, half), torch.empty(count, half)
        self._library.c.step3_begin(
            num_threads(),
            tokens.data_ptr(),
            positions.data_ptr(),
            count,
            self._embedding.data_ptr(),
            width,
            hidden.data_ptr(),
            self._frequencies.data_ptr(),
            half,
            self._factor,
            cos.data_ptr(),
            sin.data_ptr(),
        )
        return hidden, cos, sin

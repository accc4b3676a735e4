"""Where the tensors of a call or an answer lie in its buffer: a function of sizes and format alone."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from step3.wire.formats import BLOCK, Format, Shapes

ALIGNMENT = 64
"""Every tensor starts at a multiple of this, and every payload is a multiple of it long."""


@dataclass(frozen=True)
class CallLayout:
    """Byte offsets of a call's tensors.

    Attributes:
        scales: float32 `[tokens, ceil(hidden / 128)]`; there are none but in `Format.FP8`.
        ids: int32 `[tokens, top_k]`.
        weights: float32 `[tokens, top_k]`.
        nbytes: length of the payload.
    """

    format: Format
    tokens: int
    hidden: int
    top_k: int
    scales: int
    ids: int
    weights: int
    nbytes: int

    def views(self, buffer: Tensor) -> CallViews:
        """The tensors of a call in its buffer, which is uint8 and starts at a multiple of `ALIGNMENT`."""
        values = _view(buffer, 0, self.format.dtype, self.tokens, self.hidden)
        scales = ids = weights = None
        if self.format is Format.FP8:
            scales = _view(buffer, self.scales, torch.float32, self.tokens, math.ceil(self.hidden / BLOCK))
        if self.top_k:
            ids = _view(buffer, self.ids, torch.int32, self.tokens, self.top_k)
            weights = _view(buffer, self.weights, torch.float32, self.tokens, self.top_k)
        return CallViews(values, scales, ids, weights)


@dataclass(frozen=True, eq=False)
class CallViews:
    """A call's tensors, as views of its buffer."""

    values: Tensor
    scales: Tensor | None
    ids: Tensor | None
    weights: Tensor | None


@functools.lru_cache(maxsize=1024)
def call_layout(format: Format, tokens: int, hidden: int, top_k: int) -> CallLayout:
    """The layout of a call; `top_k` is 0 in a layer without experts."""
    scales = _aligned(tokens * hidden * format.dtype.itemsize)
    scale_bytes = 4 * tokens * math.ceil(hidden / BLOCK) if format is Format.FP8 else 0
    ids = _aligned(scales + scale_bytes)
    weights = _aligned(ids + 4 * tokens * top_k)
    nbytes = _aligned(weights + 4 * tokens * top_k)
    return CallLayout(format, tokens, hidden, top_k, scales, ids, weights, nbytes)


def partial_nbytes(format: Format, tokens: int, hidden: int) -> int:
    """Length of an answer's payload."""
    return _aligned(tokens * hidden * format.dtype.itemsize)


def partial_view(buffer: Tensor, format: Format, tokens: int, hidden: int) -> Tensor:
    """An answer's `[tokens, hidden]` in its buffer."""
    return _view(buffer, 0, format.dtype, tokens, hidden)


def slot_nbytes(shapes: Shapes) -> tuple[int, int]:
    """What the longest call and the longest answer take, in any format."""
    call = call_layout(Format.FLOAT32, shapes.max_tokens, shapes.hidden, shapes.top_k)
    fp8 = call_layout(Format.FP8, shapes.max_tokens, shapes.hidden, shapes.top_k)
    answer = partial_nbytes(Format.FLOAT32, shapes.max_tokens, shapes.hidden)
    return _paged(max(call.nbytes, fp8.nbytes)), _paged(answer)


def _view(buffer: Tensor, offset: int, dtype: torch.dtype, rows: int, columns: int) -> Tensor:
    return buffer[offset : offset + rows * columns * dtype.itemsize].view(dtype).view(rows, columns)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _paged(nbytes: int) -> int:
    return -(-nbytes // 4096) * 4096

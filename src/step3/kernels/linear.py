"""Matrix products with weights as they are stored: plain, or block-fp8 that is expanded at use.

Activations are never quantised: `linear(x, w)` is `x @ (q * scale).T` in the dtype of `x`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from step3.kernels.cpu.library import num_threads, open_library

BLOCK = 128
"""Side of the square blocks that share a scale."""

ROWS = 4
"""Rows of attention, and of products without compiled kernels, are counted up to these: MKL multiplies fewer,
and what is left over of them, in another order. On some processors that is not enough for products."""


@dataclass(frozen=True, eq=False)
class BlockFp8:
    """A block-fp8 weight: `q * scale`, one scale for each block of 128 x 128.

    Attributes:
        q: `[..., rows, columns]` float8_e4m3fn.
        scale: `[..., ceil(rows / 128), ceil(columns / 128)]` float32.
    """

    q: Tensor
    scale: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.q.shape

    @property
    def nbytes(self) -> int:
        return self.q.nbytes + self.scale.nbytes

    def __getitem__(self, index: int) -> BlockFp8:
        """The matrix of one expert."""
        return BlockFp8(self.q[index], self.scale[index])


Weight: TypeAlias = Tensor | BlockFp8
"""A matrix `[rows, columns]`, or one for each expert `[experts, rows, columns]`."""


def stored_weight(tensors: Mapping[str, Tensor], name: str) -> Weight:
    """A checkpoint's weight by its name, with the scales that stand beside it where it is block-fp8."""
    scale = tensors.get(f"{name}_scale_inv")
    return tensors[name] if scale is None else BlockFp8(tensors[name], scale)


def expand(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The weight's values `[..., rows, columns]` in `dtype`; products with the scale are made in float32."""
    if isinstance(weight, Tensor):
        return weight.to(dtype)
    rows, columns = weight.shape[-2:]
    if rows % BLOCK == 0 and columns % BLOCK == 0:
        blocks = weight.q.to(torch.float32).unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))
        blocks.mul_(weight.scale[..., :, None, :, None])
        return blocks.flatten(-4, -3).flatten(-2, -1).to(dtype)
    scale = weight.scale.repeat_interleave(BLOCK, -2)[..., :rows, :]
    scale = scale.repeat_interleave(BLOCK, -1)[..., :columns]
    return (weight.q.to(torch.float32) * scale).to(dtype)


def linear(x: Tensor, weight: Weight) -> Tensor:
    """`x` `[..., columns]` times the matrix, transposed: `[..., rows]` in the dtype of `x`.

    In float32 on a CPU a row's result does not depend on how many rows there are. It has no gradient then.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return F.linear(x, expand(weight, x.dtype))
    rows = x.reshape(-1, x.shape[-1])
    return _linear_float(rows, expand(weight, x.dtype)).view(*x.shape[:-1], -1)


def _linear_float(x: Tensor, weight: Tensor) -> Tensor:
    library = open_library()
    if library is None:
        return F.linear(whole_rows(x), weight)[: len(x)]
    x, weight = x.contiguous(), weight.contiguous()
    out = torch.empty(len(x), len(weight))
    library.c.step3_linear_float(
        num_threads(), x.data_ptr(), *x.shape, weight.data_ptr(), len(weight), out.data_ptr()
    )
    return out


def whole_rows(x: Tensor) -> Tensor:
    """Rows of no meaning behind those of `x` `[..., rows, columns]`, up to a multiple of `ROWS`."""
    missing = -x.shape[-2] % ROWS
    return F.pad(x, (0, 0, 0, missing)) if missing else x


def fuse(weights: Sequence[Weight]) -> tuple[Weight, ...]:
    """Stacks matrices with the same columns, so that one product serves them all.

    Block-fp8 matrices stay apart where a seam would cut through a block; plain and block-fp8 do not mix.

    Returns:
        One stacked matrix, or the matrices as they were.
    """
    if all(isinstance(weight, Tensor) for weight in weights):
        return (torch.cat([weight for weight in weights if isinstance(weight, Tensor)], -2),)
    quantised = [weight for weight in weights if isinstance(weight, BlockFp8)]
    if len(quantised) < len(weights) or any(weight.shape[-2] % BLOCK for weight in quantised[:-1]):
        return tuple(weights)
    q = torch.cat([weight.q.view(torch.uint8) for weight in quantised], -2).view(torch.float8_e4m3fn)
    return (BlockFp8(q, torch.cat([weight.scale for weight in quantised], -2)),)


def stacked_linear(x: Tensor, weights: Sequence[Weight]) -> Tensor:
    """`x` `[..., columns]` times what `fuse` returned: `[..., rows of all]`."""
    if len(weights) == 1:
        return linear(x, weights[0])
    return torch.cat([linear(x, weight) for weight in weights], -1)

"""Products and attention of the vision tower."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from step3.kernels.cpu.library import num_threads
from step3.kernels.cpu.weights import Placement, Workspace


class PackedDense:
    """A linear layer with its bias.

    Args:
        weight: `[rows, columns]`.
        bias: `[rows]`, or None.
        mapped: the weight is a view of a mapped file (see `Placement.take`).
    """

    def __init__(
        self, placement: Placement, weight: Tensor, bias: Tensor | None, *, mapped: bool = False
    ) -> None:
        self._weight = placement.take((weight,), mapped=mapped)
        self._bias = None if bias is None else bias.float().contiguous()

    @property
    def nbytes(self) -> int:
        return self._weight.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def forward(self, x: Tensor, workspace: Workspace, *, quick_gelu: bool = False) -> Tensor:
        """`[..., columns]` bfloat16 → `[..., rows]` bfloat16, through `x * sigmoid(1.702 x)` if asked for."""
        x, matrix = x.contiguous(), self._weight.matrix
        out = torch.empty(*x.shape[:-1], matrix.rows, dtype=torch.bfloat16)
        self._weight.library.c.step3_dense(
            workspace.pointer,
            num_threads(),
            ctypes.byref(matrix),
            None if self._bias is None else self._bias.data_ptr(),
            quick_gelu,
            x.data_ptr(),
            x.numel() // x.shape[-1],
            x.shape[-1],
            out.data_ptr(),
        )
        return out


def attend_picture(qkv: Tensor, workspace: Workspace) -> Tensor:
    """Attention of every row to all rows of its picture, scaled by `size ** -0.5`.

    Args:
        qkv: `[pictures, length, 3, heads, size]` bfloat16.

    Returns:
        `[pictures, length, heads * size]` bfloat16.
    """
    qkv = qkv.contiguous()
    pictures, length, _, heads, size = qkv.shape
    out = torch.empty(pictures, length, heads * size, dtype=torch.bfloat16)
    workspace.library.c.step3_attend_picture(
        workspace.pointer, num_threads(), qkv.data_ptr(), pictures, length, heads, size, out.data_ptr()
    )
    return out

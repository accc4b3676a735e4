"""Layers of the vision tower."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from step3.kernels.cpu.library import Dense, num_threads
from step3.kernels.cpu.weights import PANEL, Placement, Workspace


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
        self.rows, self.columns = weight.shape
        self._weight = placement.take((weight,), mapped=mapped)
        self._bias = torch.zeros(-(-self.rows // PANEL) * PANEL)
        if bias is not None:
            self._bias[: self.rows] = bias
        self._layer = Dense(self._weight.matrix, self._bias.data_ptr())
        self.reference = ctypes.byref(self._layer)

    @property
    def nbytes(self) -> int:
        return self._weight.nbytes + self._bias.nbytes

    def forward(self, x: Tensor, workspace: Workspace) -> Tensor:
        """`[..., columns]` bfloat16 → `[..., rows]` bfloat16."""
        x = x.contiguous()
        out = torch.empty(*x.shape[:-1], self.rows, dtype=torch.bfloat16)
        workspace.library.c.step3_dense_forward(
            workspace.pointer,
            num_threads(),
            self.reference,
            x.data_ptr(),
            x.numel() // self.columns,
            self.columns,
            out.data_ptr(),
        )
        return out


def picture_attention(
    qkv: PackedDense, out_proj: PackedDense, x: Tensor, heads: int, workspace: Workspace
) -> Tensor:
    """Attention of every row to all rows of its picture, scaled by `size ** -0.5`, between its projections.

    Args:
        qkv: gives `[3, heads, size]` for a row; the size of a head is even.
        x: `[pictures, length, heads * size]` bfloat16.

    Returns:
        The same shape, bfloat16.
    """
    return _compute("step3_picture_attention", (qkv, out_proj), x, (*x.shape[:2], heads), workspace)


def picture_mlp(first: PackedDense, second: PackedDense, x: Tensor, workspace: Workspace) -> Tensor:
    """`second(y * sigmoid(1.702 y))` with `y = first(x)`, `[..., hidden]` bfloat16 → the same."""
    return _compute("step3_picture_mlp", (first, second), x, (x.numel() // first.columns,), workspace)


def _compute(
    function: str, layers: tuple[PackedDense, ...], x: Tensor, sizes: tuple[int, ...], workspace: Workspace
) -> Tensor:
    """`function(workspace, threads, *layers, x, *sizes, out)`, whose result has the shape of `x`."""
    x = x.contiguous()
    out = torch.empty_like(x)
    references = (layer.reference for layer in layers)
    call = getattr(workspace.library.c, function)
    call(workspace.pointer, num_threads(), *references, x.data_ptr(), *sizes, out.data_ptr())
    return out

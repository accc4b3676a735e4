"""The attention side of a layer on packed weights and packed pages of keys and values."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from step3.kernels.attention import FP8, Paging
from step3.kernels.cpu.library import Attention, Batch, Library, Shape, num_threads
from step3.kernels.cpu.weights import CpuWeight, Placement, Workspace
from step3.kernels.linear import Weight

PAGE = 16
"""Tokens of a page; a block of the cache is one or more (attention.h)."""


@dataclass(frozen=True)
class AttentionShape:
    """What all layers have in common.

    Attributes:
        kv_dtype: bfloat16 or float8_e4m3fn.
        block_size: tokens of a block, a multiple of 16.
        experts, top_k: 0 where there are none.
        renormalise: the chosen experts' weights are scaled to sum to one.
    """

    hidden: int
    share_q: int
    heads: int
    head_dim: int
    eps: float
    kv_dtype: torch.dtype
    block_size: int
    experts: int = 0
    top_k: int = 0
    renormalise: bool = False

    def problem(self) -> str | None:
        """Why the kernels cannot compute this, or None if they can."""
        for name in ("head_dim", "share_q", "block_size"):
            if getattr(self, name) % PAGE:
                return f"{name} = {getattr(self, name)} is not a multiple of {PAGE}"
        if self.kv_dtype not in (torch.bfloat16, FP8):
            return f"keys and values are {self.kv_dtype}"
        return None

    def struct(self) -> Shape:
        """For the kernels."""
        return Shape(
            self.hidden,
            self.share_q,
            self.heads,
            self.head_dim,
            self.experts,
            self.top_k,
            self.renormalise,
            self.block_size,
            self.kv_dtype == FP8,
            self.eps,
            self.head_dim**-0.5,
        )


class PackedStep:
    """A step's tokens as the kernels take them; keeps what they point to."""

    def __init__(self, slots: Tensor, cos: Tensor, sin: Tensor, paging: Paging) -> None:
        """`slots` `[tokens]` int64; `cos`, `sin` `[tokens, head_dim / 2]` float32."""
        tables = paging.block_tables
        assert tables.strides[1] == 8, "a block table's row lies in one piece"
        self._kept = (slots, cos, sin, paging)
        self.tokens = slots.shape[0]
        self.struct = Batch(
            self.tokens,
            len(paging.query_lengths),
            cos.data_ptr(),
            sin.data_ptr(),
            slots.data_ptr(),
            paging.query_lengths.ctypes.data,
            paging.context_lengths.ctypes.data,
            tables.ctypes.data,
            paging.table_rows.ctypes.data,
            tables.strides[0] // 8,
        )
        self.reference = ctypes.byref(self.struct)


class PackedAttention:
    """A layer's norms, projections and router."""

    def __init__(
        self,
        placement: Placement,
        qkv: Sequence[Weight],
        wq: Weight,
        o_proj: Weight,
        norms: tuple[Tensor, Tensor, Tensor],
        router: Tensor | None,
        *,
        mapped: bool = False,
    ) -> None:
        """
        Args:
            qkv: q_proj, k_proj and v_proj.
            norms: input_layernorm, inter_norm and post_attention_layernorm.
            router: `[experts, hidden]`, or None in a layer without experts.
            mapped: the matrices are views of a mapped file (see `Placement.take`).
        """
        self.qkv = placement.take(qkv, mapped=mapped)
        self.wq = placement.take((wq,), mapped=mapped)
        self.o_proj = placement.take((o_proj,), mapped=mapped)
        self.norms = tuple(norm.float().contiguous() for norm in norms)
        self.router = None if router is None else router.float().contiguous()
        self.library: Library = placement.library
        self._struct = Attention(
            *(norm.data_ptr() for norm in self.norms),
            None if self.router is None else self.router.data_ptr(),
            self.qkv.matrix,
            self.wq.matrix,
            self.o_proj.matrix,
        )
        self.reference = ctypes.byref(self._struct)

    @property
    def address(self) -> int:
        """Of the struct that the kernels take."""
        return ctypes.addressof(self._struct)

    @property
    def matrices(self) -> tuple[CpuWeight, CpuWeight, CpuWeight]:
        return self.qkv, self.wq, self.o_proj

    @property
    def nbytes(self) -> int:
        small = sum(norm.nbytes for norm in self.norms) + (0 if self.router is None else self.router.nbytes)
        return small + sum(matrix.nbytes for matrix in self.matrices)


class PackedLayers:
    """Runs the attention side of layers that share a shape and a workspace."""

    def __init__(self, shape: AttentionShape, workspace: Workspace) -> None:
        self.shape, self.workspace = shape, workspace
        self._struct = shape.struct()
        self._reference = ctypes.byref(self._struct)

    def attend(
        self,
        layer: PackedAttention,
        step: PackedStep,
        keys: Tensor,
        values: Tensor,
        hidden: Tensor,
        answer: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Adds the last layer's FFN and this one's attention to the hidden states, and routes.

        Args:
            keys, values: the layer's blocks, changed in place; their pages are laid out as attention.h says.
            hidden: `[tokens, hidden]` float32, changed in place.
            answer: `[tokens, hidden]` bfloat16, or None before the first layer.

        Returns:
            What the FFN gets: normed activations `[tokens, hidden]` bfloat16, expert ids `[tokens, k]` int64
            and weights float32, or None in a layer without experts.
        """
        x = torch.empty(hidden.shape, dtype=torch.bfloat16)
        ids = weights = None
        if layer.router is not None:
            ids = torch.empty(step.tokens, self.shape.top_k, dtype=torch.int64)
            weights = torch.empty(step.tokens, self.shape.top_k, dtype=torch.float32)
        layer.library.c.step3_attend_layer(
            self.workspace.pointer,
            num_threads(),
            self._reference,
            layer.reference,
            step.reference,
            keys.data_ptr(),
            values.data_ptr(),
            hidden.data_ptr(),
            None if answer is None else answer.data_ptr(),
            x.data_ptr(),
            None if ids is None else ids.data_ptr(),
            None if weights is None else weights.data_ptr(),
        )
        return x, ids, weights


def final_norm(library: Library, hidden: Tensor, answer: Tensor, norm: Tensor, eps: float) -> Tensor:
    """`norm(hidden + answer)` in bfloat16; `hidden` and `norm` are float32, `answer` is bfloat16."""
    out = torch.empty(hidden.shape, dtype=torch.bfloat16)
    library.c.step3_final_norm(
        num_threads(),
        hidden.data_ptr(),
        answer.data_ptr(),
        norm.data_ptr(),
        *hidden.shape,
        eps,
        out.data_ptr(),
    )
    return out


def packed_linear(x: Tensor, weight: CpuWeight, workspace: Workspace, rows: Tensor | None = None) -> Tensor:
    """`x` `[.., columns]` bfloat16 times the matrix, transposed: `[rows, matrix rows]` float32.

    Args:
        rows: int64, which of `x` to multiply; without it all.
    """
    x = x.contiguous()
    count = x.shape[0] if rows is None else len(rows)
    out = torch.empty(count, weight.matrix.rows, dtype=torch.float32)
    weight.library.c.step3_linear(
        workspace.pointer,
        num_threads(),
        ctypes.byref(weight.matrix),
        x.data_ptr(),
        None if rows is None else rows.data_ptr(),
        count,
        x.shape[1],
        out.data_ptr(),
    )
    return out

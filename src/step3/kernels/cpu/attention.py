"""The attention side of a layer on packed weights and packed pages of keys and values."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from step3.kernels.attention import FP8, Paging
from step3.kernels.cpu.library import Attention, Batch, Features, Library, Shape, num_threads
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

    def __init__(
        self,
        ids: array[int],
        paging: Paging,
        scored: array[int],
        features: Sequence[tuple[np.ndarray, Tensor]] = (),
    ) -> None:
        """
        Args:
            ids: `[tokens]` int64.
            scored: int64, the rows that go through the head.
            features: rows that pictures fill, `[n]` int64, and what with, `[n, hidden]`.
        """
        tables, lengths = paging.tables, paging.query_lengths
        self.ids, self.paging, self._scored = ids, paging, scored
        self.tokens, self.num_scored = len(ids), len(scored)
        self.struct = Batch(
            self.tokens,
            len(lengths),
            ids.buffer_info()[0],
            lengths.buffer_info()[0],
            paging.context_lengths.buffer_info()[0],
            tables.address,
            paging.table_rows.buffer_info()[0],
            tables.stride,
            scored.buffer_info()[0],
            self.num_scored,
        )
        if features:
            self._fill(features)
        self.reference = ctypes.byref(self.struct)

    def _fill(self, features: Sequence[tuple[np.ndarray, Tensor]]) -> None:
        kept = [(torch.from_numpy(rows), values.float().contiguous()) for rows, values in features]
        structs = (Features * len(kept))(
            *(Features(rows.data_ptr(), values.data_ptr(), len(rows)) for rows, values in kept)
        )
        self.struct.features, self.struct.num_features = ctypes.addressof(structs), len(kept)
        self._features = kept, structs

    def give_memory(self, hidden: int, angles: int) -> None:
        """Room for what outlives the calls where there are several: slots, angles and hidden states."""
        slots = torch.empty(self.tokens, dtype=torch.int64)
        cos, sin, states = (torch.empty(self.tokens, width) for width in (angles, angles, hidden))
        self.slots, self.cos, self.sin, self.hidden = slots, cos, sin, states
        self.struct.slots, self.struct.hidden = slots.data_ptr(), states.data_ptr()
        self.struct.cos, self.struct.sin = cos.data_ptr(), sin.data_ptr()


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


def packed_linear(x: Tensor, weight: CpuWeight, workspace: Workspace) -> Tensor:
    """`x` `[rows, columns]` bfloat16 times the matrix, transposed: `[rows, matrix rows]` float32."""
    x = x.contiguous()
    out = torch.empty(x.shape[0], weight.matrix.rows, dtype=torch.float32)
    weight.library.c.step3_linear(
        workspace.pointer,
        num_threads(),
        ctypes.byref(weight.matrix),
        x.data_ptr(),
        None,
        *x.shape,
        out.data_ptr(),
    )
    return out

"""Weights as the CPU kernels read them: packed once, while they are read."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from step3.kernels.cpu.library import Library, Matrix, Source, num_threads
from step3.kernels.linear import BLOCK, BlockFp8, Weight

PANEL, STRIP = 32, 16
"""Rows of a panel, and of each of its two strips (tile.h)."""

_CHUNK = 64 << 20
_TYPES = {torch.bfloat16: 0, torch.float32: 1, torch.float16: 2, torch.float8_e4m3fn: 3}


class Arena:
    """Memory for packed weights in pages of 2 MiB, given back when the last reference is gone."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._free, self._end = 0, 0

    def take(self, nbytes: int) -> int:
        """The address of `nbytes` bytes of zeros, aligned to 64; memory is used when it is written to.

        Raises:
            MemoryError: there is no room for them.
        """
        wanted = -(-nbytes // 64) * 64
        if self._free + wanted > self._end:
            size = max(_CHUNK, -(-wanted // (2 << 20)) * (2 << 20))
            address = self.library.c.step3_allocate(size)
            if not address:
                raise MemoryError(f"no room for {size:,} bytes of weights")
            weakref.finalize(self, self.library.c.step3_free, address, size)
            self._free, self._end = address, address + size
        address, self._free = self._free, self._free + wanted
        return address


@dataclass(frozen=True, eq=False)
class Packed:
    """A packed matrix `[rows, columns]`, or a stack of them `[experts, rows, columns]`.

    Attributes:
        matrix: what the kernels take; its scales are null unless it is block-fp8.
        nbytes: of all experts.
    """

    matrix: Matrix
    columns: int
    experts: int
    arena: Arena

    @property
    def nbytes(self) -> int:
        return self.experts * (self.matrix.bytes + 4 * self.matrix.num_scales)


def pack(
    arena: Arena, weights: Sequence[Weight], *, interleave: bool = False, release: bool = False
) -> Packed:
    """Packs matrices with the same columns below each other.

    Args:
        weights: `[..., rows, columns]` each, all plain or all block-fp8; rows but the last one's must be a
            multiple of 16.
        interleave: two matrices of equally many rows (gate and up) strip by strip beside each other.
        release: the weights are views of a mapped file, whose pages are given back as they are done.
    """
    quantised = isinstance(weights[0], BlockFp8)
    shapes = [weight.shape for weight in weights]
    columns, rows = shapes[0][-1], sum(shape[-2] for shape in shapes)
    strips = sum(-(-shape[-2] // STRIP) for shape in shapes)
    panels, pairs = -(-strips // 2), -(-columns // STRIP) * STRIP // 2
    item = 1 if quantised else 2
    scales = panels * 2 * -(-2 * pairs // BLOCK) if quantised else 0
    experts = shapes[0][0] if len(shapes[0]) == 3 else 1
    nbytes = panels * PANEL * pairs * 2 * item
    data = arena.take(experts * nbytes)
    scale_data = arena.take(experts * scales * 4) if quantised else None
    matrix = Matrix(data, scale_data, panels, pairs, rows, nbytes, scales)
    threads = num_threads()
    for expert in range(experts):
        of_expert = [weight[expert] if len(weight.shape) == 3 else weight for weight in weights]
        sources = (Source * len(weights))(*map(_source, of_expert))
        one = Matrix(
            data + expert * nbytes,
            None if scale_data is None else scale_data + expert * scales * 4,
            panels,
            pairs,
            rows,
            nbytes,
            scales,
        )
        arena.library.c.step3_pack(
            sources, len(weights), columns, interleave, ctypes.byref(one), release, threads
        )
    return Packed(matrix, columns, experts, arena)


def _source(weight: Weight) -> Source:
    if isinstance(weight, BlockFp8):
        q, scale = _rows(weight.q), _rows(weight.scale)
        return Source(q.data_ptr(), q.shape[0], q.stride(0), 3, scale.data_ptr(), scale.stride(0))
    tensor = _rows(weight)
    return Source(tensor.data_ptr(), tensor.shape[0], tensor.stride(0), _TYPES[tensor.dtype], None, 0)


def _rows(tensor: Tensor) -> Tensor:
    assert tensor.stride(1) == 1, "rows of weights lie in one piece"
    return tensor


class Workspace:
    """Memory that the kernels keep between the calls of one attention or FFN instance."""

    def __init__(self, library: Library) -> None:
        self.pointer = library.c.step3_workspace_new()
        weakref.finalize(self, library.c.step3_workspace_free, self.pointer)

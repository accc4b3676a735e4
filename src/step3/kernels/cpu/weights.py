"""Weights as the CPU kernels take them: packed once, while they are read, or left where they are stored."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from step3.kernels.cpu.library import Library, Matrix, Source, Stored, num_threads
from step3.kernels.linear import BLOCK, BlockFp8, Weight

PANEL, STRIP = 32, 16
"""Rows of a panel, and of each of its two strips (factor.h)."""

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
class CpuWeight:
    """A matrix `[rows, columns]`, or a stack `[experts, rows, columns]`, that the kernels can multiply.

    Attributes:
        matrix: what the kernels take; its scales are null unless it is block-fp8.
        nbytes: of the weights, scales included; where they stay in place no memory was taken for them.
        kept: what `matrix` points to.
    """

    library: Library
    matrix: Matrix
    columns: int
    experts: int
    nbytes: int
    kept: object


class Placement(Protocol):
    """Where weights go that the kernels are to multiply.

    Attributes:
        in_place: whether they stay as and where they are stored.
        integers: bits of the integers that products of many rows may be of (narrow.h), or 0.
    """

    library: Library
    in_place: bool
    integers: int

    def take(self, weights: Sequence[Weight], *, interleave: bool = False, mapped: bool = False) -> CpuWeight:
        """One matrix out of up to three with the same columns below each other.

        Args:
            weights: `[..., rows, columns]` each, all plain or all block-fp8; rows but the last one's must be
                a multiple of 16.
            interleave: two matrices of equally many rows (gate and up) strip by strip beside each other.
            mapped: the weights are views of a mapped file.
        """
        ...


class Packing:
    """Packs weights into memory of its own; a mapped file's pages are given back as they are done."""

    in_place = False

    def __init__(self, library: Library, *, integers: int = 0) -> None:
        self.library, self.integers, self._arena = library, integers, Arena(library)

    def take(self, weights: Sequence[Weight], *, interleave: bool = False, mapped: bool = False) -> CpuWeight:
        """As `Placement.take`; plain weights of other dtypes are rounded to bfloat16."""
        stored, matrix = _describe(weights, interleave, self.integers)
        experts, is_quantised = _experts(weights), isinstance(weights[0], BlockFp8)
        nbytes = experts * matrix.bytes
        matrix.panels = self._arena.take(nbytes)
        if is_quantised:
            matrix.scales = self._arena.take(experts * matrix.num_scales * 4)
            nbytes += experts * matrix.num_scales * 4
        matrix.may_be_nan = self.library.c.step3_pack(
            ctypes.byref(stored), ctypes.byref(matrix), experts, mapped, num_threads()
        )
        return CpuWeight(self.library, matrix, stored.columns, experts, nbytes, self._arena)


class InPlace:
    """Leaves weights where they are, in a mapped file: each panel is laid out when it is multiplied.

    The sums are those of packed weights, in the same order. Only bfloat16 and block-fp8 can stay.
    """

    in_place = True

    def __init__(self, library: Library, *, integers: int = 0) -> None:
        self.library, self.integers = library, integers

    def take(self, weights: Sequence[Weight], *, interleave: bool = False, mapped: bool = False) -> CpuWeight:
        """As `Placement.take`."""
        del mapped
        stored, matrix = _describe(weights, interleave, self.integers)
        assert all(source.type in (0, 3) for source in stored.sources[: stored.count]), (
            "bfloat16 or block-fp8"
        )
        matrix.panels, matrix.scales = stored.sources[0].data, stored.sources[0].scales
        matrix.bytes = matrix.num_scales = 0
        matrix.stored = ctypes.pointer(stored)
        matrix.may_be_nan = isinstance(weights[0], BlockFp8)
        kept = stored, tuple(weights)
        nbytes = sum(weight.nbytes for weight in weights)
        return CpuWeight(self.library, matrix, stored.columns, _experts(weights), nbytes, kept)


def _experts(weights: Sequence[Weight]) -> int:
    return weights[0].shape[0] if len(weights[0].shape) == 3 else 1


def _describe(weights: Sequence[Weight], interleave: bool, integers: int) -> tuple[Stored, Matrix]:
    """Where the weights lie, and the matrix that they make, without its memory."""
    columns, rows = weights[0].shape[-1], sum(weight.shape[-2] for weight in weights)
    strips = sum(-(-weight.shape[-2] // STRIP) for weight in weights)
    panels, pairs = -(-strips // 2), -(-columns // PANEL) * PANEL // 2
    is_quantised = isinstance(weights[0], BlockFp8)
    nbytes = panels * PANEL * pairs * 2 * (1 if is_quantised else 2)
    scales = panels * 2 * -(-2 * pairs // BLOCK) if is_quantised else 0
    sources = (Source * 3)(*map(_source, weights))
    return (
        Stored(sources, len(weights), columns, interleave),
        Matrix(None, None, panels, pairs, rows, nbytes, scales, None, integers, False),
    )


def _source(weight: Weight) -> Source:
    if not isinstance(weight, BlockFp8):
        rows = _stack(weight)
        type_, stride = _TYPES[rows.dtype], rows.stride(1)
        return Source(rows.data_ptr(), rows.shape[1], stride, type_, None, 0, rows.stride(0), 0)
    q, scale = _stack(weight.q), _stack(weight.scale)
    return Source(
        q.data_ptr(),
        q.shape[1],
        q.stride(1),
        _TYPES[q.dtype],
        scale.data_ptr(),
        scale.stride(1),
        q.stride(0),
        scale.stride(0),
    )


def _stack(tensor: Tensor) -> Tensor:
    """`[experts, rows, columns]`."""
    assert tensor.stride(-1) == 1, "rows of weights lie in one piece"
    return tensor if tensor.dim() == 3 else tensor[None]


class Workspace:
    """Memory that the kernels keep between the calls of one attention or FFN instance."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.pointer = library.c.step3_workspace_new()
        weakref.finalize(self, library.c.step3_workspace_free, self.pointer)

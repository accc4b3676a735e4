"""Stored tensors as torch sees them: views of memory-mapped files, and copies that leave no trace.

A page of a mapped file counts as the process's memory once it was touched. Copying therefore goes tile by
tile and gives each tile's pages back, so that reading costs what stays and a few MiB, however large the
file. A box says which piece of a tensor is meant: a range for each of its dimensions.
"""

import mmap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from step3.checkpoint import block_fp8
from step3.checkpoint.config import BLOCK
from step3.checkpoint.errors import CheckpointError
from step3.checkpoint.header import TensorInfo
from step3.checkpoint.part import scale_box

DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
}
"""torch's dtype for each name that safetensors uses."""

COPIED_BYTES = 8 << 20
"""Bytes copied at a time: few enough to be no weight on memory, many enough to be worth several threads."""

DEQUANTISED_ELEMENTS = 1 << 20
"""Elements dequantised at a time; each takes 4 bytes on the way."""

Box = tuple[range, ...]


class MappedFiles:
    """The memory maps of a checkpoint's files, made when first needed; a tensor keeps its own map alive."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}
        self._bytes: dict[Path, Tensor] = {}
        # Kept from tile to tile: allocating it anew each time would leave holes between what stays.
        self._scratch = torch.empty(0, dtype=torch.float32, device="cpu")

    def view(self, info: TensorInfo, box: Box) -> Tensor:
        """A tensor that reads the file's pages: writing to it ends the process.

        Its shape is the box's, its dtype as stored; it is strided where the box cuts columns.

        Raises:
            CheckpointError: the file is gone, has shrunk since its header was read, or holds the tensor at an
                address that its dtype cannot be read from (`copy` can read it).
        """
        raw, dtype = self._raw(info), DTYPES[info.dtype]
        if info.offset % dtype.itemsize:
            raise CheckpointError(
                f"{info.file}: {info.name}: expected data aligned to {dtype.itemsize} bytes, found offset "
                f"{info.offset}; such a file can be loaded but not mapped"
            )
        return _narrow(raw.view(dtype).view(info.shape), box)

    def copy(self, info: TensorInfo, out: Tensor, box: Box) -> None:
        """Fill `out` (any device, any float dtype) with the boxed piece of a stored tensor."""
        for tile, piece in self.iter_tiles(info, box, COPIED_BYTES // DTYPES[info.dtype].itemsize):
            out[tile].copy_(piece)

    def copy_dequantised(self, info: TensorInfo, scale_info: TensorInfo, out: Tensor, box: Box) -> None:
        """Fill `out` (any device, float dtype) with `q * scale`, the boxed piece of a block-fp8 weight."""
        scale = self._scratch.new_empty([len(r) for r in scale_box(box)])
        self.copy(scale_info, scale, scale_box(box))
        for tile, q in self.iter_tiles(info, box, DEQUANTISED_ELEMENTS, row_multiple=BLOCK):
            spans = tuple(range(s.start, s.stop) for s in _full(tile, out.shape))
            part = scale[tuple(slice(r.start, r.stop) for r in scale_box(spans))]
            if self._scratch.numel() < q.numel():
                self._scratch = self._scratch.new_empty(q.numel())
            weights = self._scratch[: q.numel()].view(q.shape)
            out[tile].copy_(block_fp8.dequantise(q, part, weights))

    def iter_tiles(
        self, info: TensorInfo, box: Box, elements: int, row_multiple: int = 1
    ) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
        """Go through the boxed piece of a stored tensor, in the order of its elements, tile by tile.

        Yields each tile's place within the box, and its values as a view that must not be written to and is
        of use until the next step only: its pages are then given back. Tiles are cut as by `tiles`.
        """
        for tile in tiles([len(r) for r in box], elements, row_multiple):
            yield tile, self._tile(info, box, tile)
            self._release(info, box, tile)

    def _tile(self, info: TensorInfo, box: Box, tile: tuple[slice, ...]) -> Tensor:
        raw, dtype = self._raw(info), DTYPES[info.dtype]
        if info.offset % dtype.itemsize == 0:
            return _narrow(raw.view(dtype).view(info.shape), box)[tile]
        # Not every writer aligns its tensors: their bytes are copied to a place from which torch can read.
        octets = raw.view(*info.shape, dtype.itemsize)
        return _narrow(octets, box)[tile].clone(memory_format=torch.contiguous_format).view(dtype).squeeze(-1)

    def _raw(self, info: TensorInfo) -> Tensor:
        """The tensor's bytes, uint8 `[nbytes]`."""
        if info.nbytes == 0:
            return torch.empty(0, dtype=torch.uint8, device="cpu")
        if info.file not in self._maps:
            self._open(info.file)
        octets = self._bytes[info.file]
        if info.offset + info.nbytes > len(octets):
            raise CheckpointError(
                f"{info.file}: {info.name}: expected {info.offset + info.nbytes} bytes, found {len(octets)}: "
                "the file has changed since it was opened"
            )
        return octets[info.offset : info.offset + info.nbytes]

    def _open(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be mapped ({error})") from error
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            self._bytes[path] = torch.frombuffer(mapped, dtype=torch.uint8)
        self._maps[path] = mapped

    def _release(self, info: TensorInfo, box: Box, tile: tuple[slice, ...]) -> None:
        """Give back the pages between the tile's first and last byte."""
        if info.nbytes == 0 or not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = last = 0
        for size, wanted, span in zip(info.shape, box, _full(tile, [len(r) for r in box]), strict=True):
            first = first * size + wanted.start + span.start
            last = last * size + wanted.start + span.stop - 1
        item = info.nbytes // max(1, torch.Size(info.shape).numel())
        begin = (info.offset + first * item) // mmap.PAGESIZE * mmap.PAGESIZE
        self._maps[info.file].madvise(mmap.MADV_DONTNEED, begin, info.offset + (last + 1) * item - begin)


def tiles(shape: Sequence[int], elements: int, row_multiple: int = 1) -> Iterator[tuple[slice, ...]]:
    """Cut a tensor into pieces of about `elements` elements that together cover it once.

    Pieces are runs along the first dimension, or, where one entry of it is larger than that, runs within that
    entry. With `row_multiple` the last dimension but one is only cut at its multiples.
    """
    if not shape:
        yield ()
        return
    inner = torch.Size(shape[1:]).numel()
    is_rows = len(shape) <= 2
    if inner > elements and not is_rows:
        for i in range(shape[0]):
            for rest in tiles(shape[1:], elements, row_multiple):
                yield (slice(i, i + 1), *rest)
        return
    step = max(1, elements // max(1, inner))
    if is_rows:
        step = max(row_multiple, step // row_multiple * row_multiple)
    for start in range(0, shape[0], step):
        yield (slice(start, min(shape[0], start + step)),)


def _full(tile: tuple[slice, ...], shape: Sequence[int]) -> list[slice]:
    return [*tile, *(slice(0, size) for size in shape[len(tile) :])]


def _narrow(tensor: Tensor, box: Box) -> Tensor:
    return tensor[tuple(slice(r.start, r.stop) for r in box)]

"""The header of a safetensors file: read from a file that nobody vouches for, and written.

Format: 8 bytes N (little endian), N bytes of JSON `{name: {dtype, shape, data_offsets}}`, then the data
without gaps (https://github.com/huggingface/safetensors#format).
"""

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from step3.checkpoint.bounded_json import parse_object
from step3.checkpoint.errors import CheckpointError

MAX_HEADER_BYTES = 32 << 20
"""Many times what a Step3 checkpoint needs; the safetensors library itself stops at 100 MB."""

ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1}
"""Bytes an element of the dtypes that a Step3 checkpoint may hold, by their safetensors name, in the
order in which their tensors are written."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a stored tensor lies."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As safetensors writes it: F32, F16, BF16 or F8_E4M3."""
    file: Path
    offset: int
    """Its first byte, counted from the start of the file."""
    nbytes: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, by the names written in it.

    Raises:
        CheckpointError: no such regular file, a header that is torn, too large or malformed, an unknown
            dtype, or offsets that overlap, leave gaps or pass the end of the file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file (a shard is missing)")
    length = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise CheckpointError(f"{path}: torn: expected a safetensors file, found {length} bytes")
        (size,) = struct.unpack("<Q", prefix)
        if size > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{path}: not a safetensors file: expected a header of at most {MAX_HEADER_BYTES} bytes, "
                f"found {size}"
            )
        if 8 + size > length:
            raise CheckpointError(
                f"{path}: torn: expected a header of {size} bytes, found a file of {length} bytes"
            )
        table = parse_object(file.read(size), path)
    table.pop("__metadata__", None)
    infos = [_entry(name, entry, path, 8 + size) for name, entry in table.items()]
    _require_seamless(infos, path, 8 + size, length)
    return {info.name: info for info in infos}


def _entry(name: str, entry: Any, path: Path, base: int) -> TensorInfo:
    def refuse(what: str, expected: str, found: object) -> CheckpointError:
        return CheckpointError(f"{path}: {name}: {what}: expected {expected}, found {str(found)[:200]}")

    if not isinstance(entry, dict):
        raise refuse("entry", "an object", entry)
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise refuse("dtype", "one of " + ", ".join(ITEM_BYTES), dtype)
    if not _is_sizes(shape):
        raise refuse("shape", "a list of sizes", shape)
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise refuse("data_offsets", "two offsets", offsets)
    begin, end = offsets
    nbytes = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != nbytes:
        raise refuse("data_offsets", f"{nbytes} bytes for {dtype} {shape}", f"{end - begin} ({offsets})")
    return TensorInfo(name, tuple(shape), dtype, path, base + begin, nbytes)


def _is_sizes(value: Any) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) <= 16
        and all(type(size) is int and 0 <= size < 1 << 63 for size in value)
    )


def _require_seamless(infos: Iterable[TensorInfo], path: Path, base: int, length: int) -> None:
    end, before = base, "the header"
    for info in sorted(infos, key=lambda info: (info.offset, info.nbytes)):
        if info.offset != end:
            fault = "overlaps" if info.offset < end else "leaves a gap after"
            raise CheckpointError(
                f"{path}: {info.name}: {fault} {before}: expected offset {end}, found {info.offset}"
            )
        end, before = info.offset + info.nbytes, info.name
        if end > length:
            raise CheckpointError(
                f"{path}: {info.name}: torn: expected data up to byte {end}, found a file of {length} bytes"
            )
    if end < length:
        raise CheckpointError(
            f"{path}: expected {end} bytes, found {length} (bytes that belong to no tensor)"
        )


@dataclass(frozen=True)
class StoredTensor:
    """A tensor to be written: dtype by its safetensors name."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def encode_header(tensors: Iterable[StoredTensor]) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a safetensors file that holds `tensors`, and where each one's data then begins.

    Wider dtypes come first and the header is padded to 8 bytes, so that every tensor is aligned: byte for
    byte what the safetensors library writes.
    """
    order = list(ITEM_BYTES)
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets, end = {}, 0
    for tensor in sorted(tensors, key=lambda tensor: (order.index(tensor.dtype), tensor.name)):
        offsets[tensor.name] = end
        span = [end, end + tensor.nbytes]
        table[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": span}
        end += tensor.nbytes
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    return header, {name: len(header) + offset for name, offset in offsets.items()}

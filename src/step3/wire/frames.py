"""The frame: a fixed header, then at most one payload whose length the header's own numbers must explain.

A header is 104 bytes, little-endian: magic, version, kind, formats, attention instance, epoch, lane, layer,
slot, top_k, call number, serial, tokens, hidden, payload length, payload checksum, three times, tag. The tag
is a MAC of all that stands before it under the key of the connection, so that a header that was torn, made
up, replayed from another connection or meant for the other side has no valid tag; within a connection the
serial counts the frames of each direction.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np

from step3.wire.errors import FrameError
from step3.wire.formats import Format, Shapes
from step3.wire.layout import call_layout, partial_nbytes

MAGIC = b"S3AF"
VERSION = 1
MAX_TEXT_BYTES = 1024
"""The longest message of an error frame."""

_FIELDS = struct.Struct("<4sBBBBIIHHHHQQIIQQQQQ")
FIELDS_BYTES = _FIELDS.size
TAG_BYTES = 16
HEADER_BYTES = FIELDS_BYTES + TAG_BYTES

_COLUMNS = 1021


class Kind(enum.IntEnum):
    """What a frame says."""

    CALL = 1
    PARTIAL = 2
    ERROR = 3
    """The call of this slot cannot be answered; the payload says why, in UTF-8."""
    HEARTBEAT = 4
    GOODBYE = 5
    """Nothing more will come from this side; the end of the connection is no fault."""


_KINDS = {int(kind): kind for kind in Kind}
_FORMATS = {int(format): format for format in Format}


class Header(NamedTuple):
    """A frame's header, without magic, version and tag; a tuple, as one is made for every frame.

    Attributes:
        activations: format of a call's activations.
        partials: format of a partial sum; in a call, the one that is asked for.
        instance: attention instance.
        epoch: of the sender.
        call: number of the call, counted by the attention instance.
        serial: frames that this side sent on this connection before this one.
        payload_bytes: bytes of payload, on the stream or in the slot.
        checksum: of a payload on the stream; 0 for none.
        arrived_ns, started_ns, finished_ns: when the FFN side had received the call, began it and had its
            answer, on its own monotonic clock.
    """

    kind: Kind
    activations: Format = Format.FLOAT32
    partials: Format = Format.FLOAT32
    instance: int = 0
    epoch: int = 0
    lane: int = 0
    layer: int = 0
    slot: int = 0
    top_k: int = 0
    call: int = 0
    serial: int = 0
    tokens: int = 0
    hidden: int = 0
    payload_bytes: int = 0
    checksum: int = 0
    arrived_ns: int = 0
    started_ns: int = 0
    finished_ns: int = 0


def pack(header: Header, key: bytes) -> bytes:
    """A header as bytes, sealed with `key`."""
    fields = pack_fields(header)
    return fields + _tag(fields, key)


def pack_fields(header: Header) -> bytes:
    """A header as bytes without a seal, for a ring that nobody else can write."""
    return _FIELDS.pack(MAGIC, VERSION, *header)


def unpack(data: bytes | bytearray | memoryview, key: bytes) -> Header:
    """Reads a header.

    Raises:
        FrameError: it is no header, or not one that `key` sealed.
    """
    data = memoryview(data)
    if len(data) != HEADER_BYTES:
        raise FrameError(f"a header has {HEADER_BYTES} bytes, not {len(data)}")
    fields = _FIELDS.unpack_from(data)
    _check_magic(fields)
    if not hmac.compare_digest(_tag(data[:FIELDS_BYTES], key), data[FIELDS_BYTES:]):
        raise FrameError("a header's tag is wrong: it is damaged, forged or replayed")
    return _header(fields)


def unpack_fields(data: memoryview) -> Header:
    """Reads what `pack_fields` wrote.

    Raises:
        FrameError: it is no header.
    """
    fields = _FIELDS.unpack_from(data)
    _check_magic(fields)
    return _header(fields)


def _check_magic(fields: tuple[Any, ...]) -> None:
    if fields[0] != MAGIC:
        raise FrameError(f"no frame of the wire starts with {bytes(fields[0])!r}")
    if fields[1] != VERSION:
        raise FrameError(f"the peer speaks version {fields[1]} of the wire, this side version {VERSION}")


def _header(fields: tuple[Any, ...]) -> Header:
    _, _, kind, activations, partials, *numbers = fields
    try:
        return Header(_KINDS[kind], _FORMATS[activations], _FORMATS[partials], *numbers)
    except KeyError as error:
        raise FrameError(f"a header holds an unknown kind or format: {error}") from None


def check(header: Header, shapes: Shapes) -> None:
    """Holds a header's numbers against the shapes of the connection, before anything is read or allocated.

    Raises:
        FrameError: a number is out of range, or the length is not the one that shape and format give.
    """
    expected = 0
    if header.kind in (Kind.CALL, Kind.PARTIAL):
        if not 1 <= header.tokens <= shapes.max_tokens:
            raise FrameError(
                f"{header.tokens:,} tokens do not fit a connection of at most {shapes.max_tokens:,}"
            )
        if header.hidden != shapes.hidden or header.top_k not in (0, shapes.top_k):
            raise FrameError(
                f"{header.hidden} channels with top {header.top_k} do not fit a connection of "
                f"{shapes.hidden} channels and top {shapes.top_k}"
            )
        if header.partials is Format.FP8:
            raise FrameError("partial sums do not travel as fp8")
        if header.kind is Kind.CALL:
            expected = call_layout(header.activations, header.tokens, header.hidden, header.top_k).nbytes
        else:
            expected = partial_nbytes(header.partials, header.tokens, header.hidden)
    elif header.kind is not Kind.HEARTBEAT:
        expected = min(header.payload_bytes, MAX_TEXT_BYTES)
    if header.slot >= shapes.slots or header.layer >= shapes.layers:
        raise FrameError(
            f"slot {header.slot} and layer {header.layer} do not fit a connection of "
            f"{shapes.slots} slots and {shapes.layers} layers"
        )
    if header.payload_bytes != expected:
        raise FrameError(
            f"a {header.kind.name.lower()} frame claims {header.payload_bytes:,} bytes, not {expected:,}"
        )


def checksum(payload: memoryview | np.ndarray) -> int:
    """Of a payload: CRC-32 of the sums of its 64-bit words in 1021 columns, and of the bytes past them.

    It is never 0. The sums run at the speed of memory, ten times faster than a CRC of everything. Any change
    within one word is found; rows of 8168 bytes that change places are not.
    """
    data = np.frombuffer(payload, np.uint8)
    rows = len(data) // (8 * _COLUMNS)
    cut = rows * 8 * _COLUMNS
    crc = zlib.crc32(data[cut:].data)
    if rows:
        sums = np.add.reduce(data[:cut].view(np.uint64).reshape(rows, _COLUMNS), axis=0)
        crc = zlib.crc32(sums.data, crc)
    return crc | 1 << 32


def _tag(fields: bytes | memoryview, key: bytes) -> bytes:
    return hashlib.blake2s(fields, key=key, digest_size=TAG_BYTES).digest()

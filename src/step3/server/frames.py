"""What passes between the HTTP process and the engine process: messages in msgpack, each after its length."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import msgpack

from step3.errors import Step3Error

MAX_FRAME_BYTES = 1 << 30
"""A longer frame is an error of the other side; nothing is reserved for it."""

_LENGTH = struct.Struct(">I")


class FrameError(Step3Error):
    """Bytes that are no frame, or a message that is too long for one."""


def encode(message: Any) -> bytes:
    """A message as a frame: its length as 4 bytes, big-endian, then msgpack.

    Raises:
        FrameError: it is longer than `MAX_FRAME_BYTES`.
    """
    body = msgpack.packb(message)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"a message of {len(body):,} bytes is over the {MAX_FRAME_BYTES:,} of a frame")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts a stream of bytes into messages."""

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_bytes, self._buffer = max_bytes, bytearray()

    def push(self, data: bytes) -> list[Any]:
        """The messages that `data` completes.

        Raises:
            FrameError: a frame is too long, or not msgpack.
        """
        self._buffer += data
        messages, start = [], 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > self._max_bytes:
                raise FrameError(f"a frame of {length:,} bytes is over the {self._max_bytes:,} allowed")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            try:
                messages.append(
                    msgpack.unpackb(
                        memoryview(self._buffer)[start + _LENGTH.size : end], strict_map_key=False
                    )
                )
            except (ValueError, msgpack.UnpackException) as error:
                raise FrameError(f"a frame is not msgpack: {error}") from None
            start = end
        if start:
            del self._buffer[:start]
        return messages


class Connection(asyncio.Protocol):
    """One end of the stream of frames.

    Messages sent in one turn of the event loop leave in one write.
    """

    def __init__(self, on_message: Callable[[Any], None], on_lost: Callable[[], None]) -> None:
        """
        Args:
            on_message: called with each message, in order.
            on_lost: called once, when nothing comes any more.
        """
        self._on_message, self._on_lost = on_message, on_lost
        self._reader, self._unsent = FrameReader(), list[bytes]()
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            messages = self._reader.push(data)
        except FrameError:
            self.close()
            return
        for message in messages:
            self._on_message(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_lost()

    def send(self, message: Any) -> None:
        """Sends a message; to nowhere if the other side is gone."""
        if self._transport is None:
            return
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(encode(message))

    def close(self) -> None:
        """Sends what is left and closes."""
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def _flush(self) -> None:
        if self._unsent and self._transport is not None:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

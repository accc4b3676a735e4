"""uvicorn's connections with the limits that it lacks: on requests that do not come, and on answers that are
not read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


@dataclass(frozen=True)
class ConnectionLimits:
    """What a connection may cost.

    Attributes:
        head_seconds: for a request's line and headers to arrive, once the connection is there.
        head_bytes: of them.
        write_seconds: that an answer may wait for the client to read, once the system's buffers are full.
    """

    head_seconds: float = 30.0
    head_bytes: int = 64 << 10
    write_seconds: float = 60.0


def limited(limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """uvicorn's protocol, held to limits. Who exceeds one is hung up on."""

    class LimitedProtocol(HttpToolsProtocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._limit: asyncio.TimerHandle | None = None
            self._head_bytes: int | None = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._hang_up_after(limits.head_seconds)

        def connection_lost(self, exc: Exception | None) -> None:
            self._relax()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._head_bytes is not None:
                self._head_bytes += len(data)
            super().data_received(data)
            if self._head_bytes is not None and self._head_bytes > limits.head_bytes:
                self.transport.abort()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._head_bytes = 0
            self._hang_up_after(limits.head_seconds)

        def on_headers_complete(self) -> None:
            self._head_bytes = None
            self._relax()
            super().on_headers_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._hang_up_after(limits.write_seconds)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._relax()

        def _hang_up_after(self, seconds: float) -> None:
            self._relax()
            hang_up: Callable[[], None] = self.transport.abort
            self._limit = self.loop.call_later(seconds, hang_up)

        def _relax(self) -> None:
            if self._limit is not None:
                self._limit.cancel()
                self._limit = None

    return LimitedProtocol

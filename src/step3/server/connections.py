"""uvicorn's connections with the limits that it lacks: on requests that do not come, and on answers that are
not read."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_LINGER_SECONDS = 2.0
"""How long a client has to read why its request was refused before it was all there."""


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
            self._waits_for_head: asyncio.TimerHandle | None = None
            self._waits_for_client: asyncio.TimerHandle | None = None
            self._lingers: asyncio.TimerHandle | None = None
            self._head_bytes: int | None = 0
            self._is_request_complete = True

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._waits_for_head = self.loop.call_later(limits.head_seconds, transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._waits_for_head, self._waits_for_client, self._lingers):
                _cancel(timer)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._head_bytes is not None:
                self._head_bytes += len(data)
                if self._head_bytes > limits.head_bytes:
                    self.transport.abort()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._head_bytes, self._is_request_complete = 0, False
            _cancel(self._waits_for_head)
            self._waits_for_head = self.loop.call_later(limits.head_seconds, self.transport.abort)

        def on_headers_complete(self) -> None:
            self._head_bytes = None
            _cancel(self._waits_for_head)
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._is_request_complete = True
            _cancel(self._lingers)
            super().on_message_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            # What is left of a request that was refused is not read for long.
            if not self._is_request_complete and not self.transport.is_closing():
                self._lingers = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

        def pause_writing(self) -> None:
            super().pause_writing()
            _cancel(self._waits_for_client)
            self._waits_for_client = self.loop.call_later(limits.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            _cancel(self._waits_for_client)

    return LimitedProtocol


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()

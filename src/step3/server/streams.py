"""Answers that a client may stop waiting for: server-sent events, and whole answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Result = TypeVar("Result")

DONE = b"data: [DONE]\n\n"
_KEEP_ALIVE = b": keep-alive\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ClientGone(Exception):
    """The client closed its connection before it had its answer."""


def event(value: Any) -> bytes:
    """A JSON value as one server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """Server-sent events from a generator, which is closed as soon as the client goes away.

    While the generator gives nothing, comments keep the connection alive. A client that does not read for
    too long is taken for gone.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        upcoming: asyncio.Future[bytes],
        keep_alive_seconds: float,
        write_seconds: float,
    ) -> None:
        self.status_code, self.background = 200, None
        self._events, self._upcoming = events, upcoming
        self._keep_alive_seconds, self._write_seconds = keep_alive_seconds, write_seconds

    @classmethod
    async def open(
        cls,
        request: Request,
        events: AsyncGenerator[bytes, None],
        keep_alive_seconds: float,
        write_seconds: float,
    ) -> EventStream:
        """A stream that has its first event, or must show that it lives; what fails before fails here.

        Raises:
            ClientGone: the client went away.
            Exception: what the generator raised instead of its first event.
        """
        upcoming: asyncio.Future[bytes] = asyncio.ensure_future(anext(events))
        watcher = asyncio.create_task(_wait_until_gone(request.receive))
        is_open = False
        try:
            waited: set[asyncio.Future[Any]] = {upcoming, watcher}
            await asyncio.wait(waited, timeout=keep_alive_seconds, return_when=asyncio.FIRST_COMPLETED)
            if watcher.done():
                raise ClientGone
            if upcoming.done():
                upcoming.result()
            is_open = True
        finally:
            watcher.cancel()
            if not is_open:
                await _close(events, upcoming)
        return cls(events, upcoming, keep_alive_seconds, write_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        writer = asyncio.create_task(self._write(send))
        watcher = asyncio.create_task(_wait_until_gone(receive))
        try:
            await asyncio.wait({writer, watcher}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (writer, watcher):
                task.cancel()
            await asyncio.gather(writer, watcher, return_exceptions=True)
            await _close(self._events, self._upcoming)
        if not writer.cancelled():
            writer.result()

    async def _write(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        this = asyncio.current_task()
        assert this is not None
        while True:
            if not self._upcoming.done():
                await asyncio.wait({self._upcoming}, timeout=self._keep_alive_seconds)
            body = _KEEP_ALIVE
            if self._upcoming.done():
                try:
                    body = self._upcoming.result()
                except StopAsyncIteration:
                    break
                self._upcoming = asyncio.ensure_future(anext(self._events))
            patience = loop.call_later(self._write_seconds, this.cancel)
            await send({"type": "http.response.body", "body": body, "more_body": True})
            patience.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _close(events: AsyncGenerator[bytes, None], upcoming: asyncio.Future[bytes]) -> None:
    upcoming.cancel()
    await asyncio.gather(upcoming, return_exceptions=True)
    await events.aclose()


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled as soon as the client goes away.

    Raises:
        ClientGone: it did.
    """
    worker = asyncio.create_task(work)
    watcher = asyncio.create_task(_wait_until_gone(request.receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            raise ClientGone
        return worker.result()
    finally:
        for task in (worker, watcher):
            task.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

"""Answers that a client may stop waiting for: server-sent events, and whole answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from contextlib import suppress
from math import inf
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Result = TypeVar("Result")

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
_AT_ONCE = 4
"""Events after which others have their turn, and that a client has gone can be noticed: neither does while
events are at hand, and asyncio warns of each that is written to a connection that is lost."""
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ClientGone(Exception):
    """The client closed its connection before it had its answer."""


def event(value: Any) -> bytes:
    """A JSON value as one server-sent event."""
    return b"data: " + _JSON.encode(value).encode() + b"\n\n"


def named_event(name: str, value: Any) -> bytes:
    """A JSON value as one server-sent event that has a name."""
    return b"event: " + name.encode() + b"\n" + event(value)


class EventStream(Response):
    """Server-sent events from a generator, which is closed as soon as the client goes away.

    While the generator gives nothing, comments or pings keep the connection alive.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        first: asyncio.Future[bytes],
        keep_alive_seconds: float,
        ping: bytes,
    ) -> None:
        self.status_code, self.background = 200, None
        self._events, self._first, self._ping = events, first, ping
        self._keep_alive_seconds = keep_alive_seconds
        self._last_sent = -inf if not first.done() else asyncio.get_running_loop().time()

    @classmethod
    async def open(
        cls,
        request: Request,
        events: AsyncGenerator[bytes, None],
        keep_alive_seconds: float,
        ping: bytes = KEEP_ALIVE,
    ) -> EventStream:
        """A stream that has its first event, or must show that it lives; what fails before fails here.

        Args:
            keep_alive_seconds: of silence, after which `ping` is sent.

        Raises:
            ClientGone: the client went away.
            Exception: what the generator raised instead of its first event.
        """
        first: asyncio.Future[bytes] = asyncio.ensure_future(anext(events))
        watcher = asyncio.create_task(_wait_until_gone(request.receive))
        is_open = False
        try:
            waited: set[asyncio.Future[Any]] = {first, watcher}
            await asyncio.wait(waited, timeout=keep_alive_seconds, return_when=asyncio.FIRST_COMPLETED)
            if watcher.done():
                raise ClientGone
            if first.done():
                first.result()
            is_open = True
        finally:
            watcher.cancel()
            if not is_open:
                await _close(events, first)
        return cls(events, first, keep_alive_seconds, ping)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        tasks = [
            asyncio.create_task(work)
            for work in (self._write(send), self._keep_alive(send), _wait_until_gone(receive))
        ]
        writer = tasks[0]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await _close(self._events, self._first)
        if not writer.cancelled():
            writer.result()

    async def _write(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        with suppress(StopAsyncIteration):
            await send({"type": "http.response.body", "body": await self._first, "more_body": True})
            # From here on no task stands between generator and client: it would be half an event's cost.
            sent = 0
            async for body in self._events:
                self._last_sent = loop.time()
                await send({"type": "http.response.body", "body": body, "more_body": True})
                sent += 1
                if sent % _AT_ONCE == 0:
                    await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        while True:
            silent = loop.time() - self._last_sent
            if silent >= self._keep_alive_seconds:
                self._last_sent = loop.time()
                await send({"type": "http.response.body", "body": self._ping, "more_body": True})
                silent = 0.0
            await asyncio.sleep(self._keep_alive_seconds - silent)


async def _close(events: AsyncGenerator[bytes, None], first: asyncio.Future[bytes]) -> None:
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
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

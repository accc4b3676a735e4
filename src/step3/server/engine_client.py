"""Calls to the engine's process, as streams."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from itertools import count
from types import TracebackType
from typing import Any, Literal

from step3.errors import Step3Error
from step3.server.frames import Connection

Kind = Literal["invalid", "late", "overloaded", "unavailable", "internal"]


class EngineFailure(Step3Error):
    """The engine did not answer a call.

    Attributes:
        kind: whether the request is at fault ("invalid"), took too long ("late"), may be tried again later
            ("overloaded", "unavailable"), or the engine is at fault ("internal").
    """

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class EngineGone(EngineFailure):
    """The engine's process ended before it had answered."""

    def __init__(self) -> None:
        super().__init__("unavailable", "the engine stopped before it had answered: try again in a moment")


class Call:
    """One call's answers, as an async context manager; leaving it early ends the call in the engine."""

    def __init__(
        self, start: Callable[[], None], abort: Callable[[], None], seconds: float | None = None
    ) -> None:
        """`seconds` is how long all the answers may take; None is for ever."""
        self._start, self._abort, self._seconds = start, abort, seconds
        self._limit: asyncio.TimerHandle | None = None
        self._answers: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._has_ended = False

    def put(self, kind: str, value: Any) -> None:
        self._answers.put_nowait((kind, value))

    async def __aenter__(self) -> Call:
        if self._seconds is not None:
            self._limit = asyncio.get_running_loop().call_later(self._seconds, self.put, "late", None)
        self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._limit is not None:
            self._limit.cancel()
        if not self._has_ended:
            self._has_ended = True
            self._abort()

    def __aiter__(self) -> Call:
        return self

    async def __anext__(self) -> Any:
        """The next item.

        Raises:
            EngineFailure: there is none, as the engine refuses, fails or is gone.
        """
        kind, value = await self._answers.get()
        if kind == "item":
            return value
        if kind == "late":
            raise EngineFailure("late", f"the answer was not complete within {self._seconds:g} s")
        self._has_ended = True
        if kind == "end":
            raise StopAsyncIteration
        if kind == "gone":
            raise EngineGone
        raise EngineFailure(*value)


class EngineClient:
    """The HTTP process's end of the connection."""

    def __init__(self, on_lost: Callable[[], None]) -> None:
        """`on_lost` is called once, when the engine's end is closed."""
        self._calls: dict[int, Call] = {}
        self._numbers = count(1)
        self._on_lost, self._is_lost = on_lost, False
        self._connection = Connection(self._on_message, self._lose)

    async def connect(self, end: socket.socket) -> None:
        await asyncio.get_running_loop().create_connection(lambda: self._connection, sock=end)

    def call(self, method: str, arguments: Any, seconds: float | None = None) -> Call:
        """A call that is made when its context is entered, and may take so many seconds."""
        number = next(self._numbers)

        def start() -> None:
            if self._is_lost:
                call.put("gone", None)
                return
            self._calls[number] = call
            self._connection.send([number, method, arguments])

        def abort() -> None:
            if self._calls.pop(number, None) is not None:
                self._connection.send([number, "abort", None])

        call = Call(start, abort, seconds)
        return call

    async def ask(self, method: str, arguments: Any) -> Any:
        """The one item that a call answers."""
        async with self.call(method, arguments) as call:
            return await anext(call)

    def close(self) -> None:
        """Hangs up, which stops the engine's process."""
        self._connection.close()

    def _on_message(self, message: Any) -> None:
        number, kind, value = message
        call = self._calls.get(number)
        if call is None:
            return
        if kind != "item":
            del self._calls[number]
        call.put(kind, value)

    def _lose(self) -> None:
        self._is_lost = True
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.put("gone", None)
        self._on_lost()

"""The engine's process: takes calls from the HTTP process as frames, and answers each with a stream of them.

A call is `[id, method, arguments]`; its answers are `[id, "item", value]`, any number of them, then
`[id, "end", None]` or `[id, "error", [kind, message]]`. `[id, "abort", None]` ends a call at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import traceback
from collections.abc import AsyncGenerator, Callable
from typing import Any

from step3.errors import Step3Error
from step3.server.frames import Connection

Method = Callable[[Any], AsyncGenerator[Any, None]]


class Calls:
    """Runs the calls of one connection, each as a task."""

    def __init__(self, is_alive: Callable[[], bool]) -> None:
        """
        Args:
            is_alive: whether the engine can go on; when it cannot, the connection is closed.
        """
        self.methods: dict[str, Method] = {}
        self.closed = asyncio.Event()
        self._is_alive = is_alive
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._connection = Connection(self._on_message, self.closed.set)

    async def connect(self, end: socket.socket) -> None:
        await asyncio.get_running_loop().create_connection(lambda: self._connection, sock=end)

    async def finish(self) -> None:
        """Ends all calls."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._connection.close()

    def _on_message(self, message: Any) -> None:
        number, name, arguments = message
        if name == "abort":
            task = self._tasks.get(number)
            if task is not None:
                task.cancel()
            return
        task = asyncio.create_task(self._run(number, self.methods[name], arguments))
        self._tasks[number] = task
        task.add_done_callback(lambda _: self._tasks.pop(number, None))

    async def _run(self, number: int, method: Method, arguments: Any) -> None:
        send = self._connection.send
        stream = method(arguments)
        try:
            async for item in stream:
                send([number, "item", item])
        except Step3Error as error:
            send([number, "error", [_kind(error), str(error)]])
        except Exception:
            # The client must not see what went wrong inside; whoever runs the server must.
            traceback.print_exc()
            send([number, "error", ["internal", "the engine failed to answer this request"]])
        else:
            send([number, "end", None])
        finally:
            await stream.aclose()
        if not self._is_alive():
            self.closed.set()


def _kind(error: Step3Error) -> str:
    from step3.engine.async_llm import OverloadedError
    from step3.engine.config import EngineError

    if isinstance(error, OverloadedError):
        return "overloaded"
    return "unavailable" if isinstance(error, EngineError) else "invalid"


async def _serve(end: socket.socket) -> int:
    """Answers calls until the other side goes, or the engine dies; returns the exit status."""
    state: dict[str, Any] = {}

    def is_alive() -> bool:
        return "service" not in state or state["service"].is_alive

    calls = Calls(is_alive)

    async def start(arguments: Any) -> AsyncGenerator[Any, None]:
        from step3.server.engine_service import EngineService

        service = await asyncio.to_thread(EngineService, **arguments)
        state["service"] = service
        calls.methods.update(service.methods)
        yield service.describe()

    calls.methods["start"] = start
    await calls.connect(end)
    await calls.closed.wait()
    has_died = not is_alive()
    await calls.finish()
    if "service" in state and not has_died:
        await asyncio.to_thread(state["service"].shutdown)
    return 1 if has_died else 0


async def _serve_and_exit(end: socket.socket) -> None:
    status = await _serve(end)
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread that still loads or computes must not hold the process.
    os._exit(status)


def main() -> None:
    """`python -m step3.server.engine_process FD`: serves the socket that it inherits as FD."""
    # The HTTP process tells when to stop, by closing the connection: a signal to the group, as from a
    # terminal or a service manager, must not end requests that are to be drained.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asyncio.run(_serve_and_exit(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()

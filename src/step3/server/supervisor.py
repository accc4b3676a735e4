"""Keeps an engine process alive: starts it, notices when it dies, starts it again."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from step3.server.config import ServerError
from step3.server.engine_client import Call, EngineClient, EngineFailure

FIRST_BACK_OFF = 0.5
LONGEST_BACK_OFF = 30.0
STOP_SECONDS = 10.0
"""How long an engine may take to stop before it is killed."""

log = logging.getLogger("step3.server")


class Supervisor:
    """One engine process at a time.

    Attributes:
        info: what the engine tells of its model.
        restarts: how often a dead engine was replaced.
        process: the one that runs, or ran last.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """`arguments` are those of `step3.server.engine_service.EngineService`."""
        self._arguments = dict(arguments)
        self._client: EngineClient | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self.info: dict[str, Any] = {}
        self.restarts = 0
        self.process: asyncio.subprocess.Process | None = None

    @property
    def is_ready(self) -> bool:
        """Whether calls can be made."""
        return self._client is not None

    async def start(self) -> None:
        """Starts the engine and waits until its model is loaded.

        Raises:
            ServerError: it does not start; says why.
        """
        await self._start_engine()
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Stops the engine, by force if it must be."""
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
        await self._end_process()

    def call(self, method: str, arguments: Any, seconds: float | None = None) -> Call:
        """A call to the engine, which may take so many seconds.

        Raises:
            EngineFailure: no engine is ready.
        """
        return self._ready().call(method, arguments, seconds)

    async def ask(self, method: str, arguments: Any) -> Any:
        """A call with one answer.

        Raises:
            EngineFailure: no engine is ready, or it refuses.
        """
        return await self._ready().ask(method, arguments)

    def _ready(self) -> EngineClient:
        if self._client is None:
            raise EngineFailure("unavailable", "the engine is being started: try again in a moment")
        return self._client

    async def _start_engine(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "step3.server.engine_process", str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
            )
        ours.setblocking(False)
        self._lost = asyncio.Event()
        client = EngineClient(self._lost.set)
        await client.connect(ours)
        try:
            self.info = await client.ask("start", self._arguments)
        except EngineFailure as error:
            client.close()
            await self._end_process()
            raise ServerError(str(error)) from None
        except asyncio.CancelledError:
            client.close()
            raise
        self._client = client

    async def _watch(self) -> None:
        back_off = FIRST_BACK_OFF
        while True:
            started = asyncio.get_running_loop().time()
            await self._lost.wait()
            self._client = None
            await self._end_process()
            if asyncio.get_running_loop().time() - started > LONGEST_BACK_OFF:
                back_off = FIRST_BACK_OFF
            while self._client is None:
                log.error("the engine's process ended; the next one starts in %g s", back_off)
                await asyncio.sleep(back_off)
                back_off = min(2 * back_off, LONGEST_BACK_OFF)
                try:
                    await self._start_engine()
                except ServerError as error:
                    log.error("the engine did not start: %s", error)
            self.restarts += 1
            log.warning("the engine runs again")

    async def _end_process(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        if self.process is None:
            return
        try:
            await asyncio.wait_for(self.process.wait(), STOP_SECONDS)
        except asyncio.TimeoutError:
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()

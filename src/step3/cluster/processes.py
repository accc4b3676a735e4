"""Instances of this host as processes: started fast, noticed when they end, and never left behind.

They are forked from a nursery, a process of one thread that has imported everything and computed nothing, so
that a dead instance is replaced in the time that its weights take. The kernel kills the nursery when whoever
started it ends by any means, and the instances with the nursery, frozen ones too.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FIRST_BACK_OFF, LONGEST_BACK_OFF = 0.05, 10.0
"""Seconds before a dead process is replaced; doubled each time it dies young."""

STAND_IN_BACK_OFF = 0.5
"""Seconds at least where another instance can do its work meanwhile."""

OLD_AGE = 10.0
"""Seconds after which a death is no longer taken for a failure to start."""

_PR_SET_PDEATHSIG = 1
_ROLES = ("ffn", "attention")

log = logging.getLogger("step3.cluster")


class Process:
    """A running instance."""

    def __init__(self, pid: int, ended: Callable[[], None]) -> None:
        """
        Args:
            ended: called once, on the event loop.

        Raises:
            ProcessLookupError: it has ended already.
        """
        self.pid, self._ended = pid, ended
        self._pidfd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._end)

    @property
    def has_ended(self) -> bool:
        return self._pidfd < 0

    def kill(self) -> None:
        if self._pidfd >= 0:
            # Through the descriptor: the number may be another process's by now.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._ended()


class Nursery:
    """Starts instances; on one event loop, whose thread lives as long as they may."""

    def __init__(self) -> None:
        self._turn, self._pid = asyncio.Lock(), 0
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self, roles: Sequence[str]) -> None:
        """Begins to import what instances of some roles will need; returns before that is done."""
        async with self._turn:
            await self._open()
            assert self._writer is not None
            self._writer.write(json.dumps({"preload": list(roles)}).encode() + b"\n")

    async def start(self, settings: Mapping[str, Any], ended: Callable[[], None]) -> Process:
        """Starts an instance with its settings; `ended` is called when it has ended.

        Raises:
            ProcessLookupError: it has ended already, or cannot be started.
        """
        async with self._turn:
            for _ in range(2):
                if self._writer is None:
                    await self._open()
                assert self._writer is not None
                assert self._reader is not None
                try:
                    self._writer.write(json.dumps(dict(settings)).encode() + b"\n")
                    line = await self._reader.readline()
                except OSError:
                    line = b""
                if line:
                    return Process(int(line), ended)
                # Somebody has killed the nursery, and all instances with it.
                self.close()
        raise ProcessLookupError("the nursery does not start")

    def close(self) -> None:
        """Ends the nursery, and with it all that it has started."""
        if self._writer is not None:
            self._writer.close()
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        self._reader = self._writer = None
        self._pid = 0

    async def _open(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.set_inheritable(True)
            # Not `asyncio.create_subprocess_exec`: it may fork on another thread, which would not live on.
            self._pid = os.posix_spawn(
                sys.executable,
                [
                    sys.executable,
                    "-m",
                    "step3.cluster.processes",
                    str(theirs.fileno()),
                    str(os.getpid()),
                ],
                os.environ,
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
            )
        ours.setblocking(False)
        self._reader, self._writer = await asyncio.open_connection(sock=ours)


def main() -> None:
    """`python -m step3.cluster.processes FD PARENT`: the nursery, told by the socket FD what to start."""
    connection, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    _die_with(parent)
    # A Ctrl-C in the terminal is for who started us: it lets requests finish first.
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    nursery = os.getpid()
    with connection.makefile("rb") as lines:
        for line in lines:
            settings: dict[str, Any] = json.loads(line)
            for role in settings.get("preload", ()):
                _preload(role)
            if "role" not in settings:
                continue
            _preload(settings["role"])
            pid = os.fork()
            if pid == 0:
                _be_instance(settings, nursery, connection)
            connection.sendall(f"{pid}\n".encode())


def _preload(role: str) -> None:
    if role in _ROLES:
        importlib.import_module(f"step3.cluster.{role}_instance")
    if role == "attention":
        # Those of the tokenizer, which imports them when it is first read.
        from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401

        importlib.import_module("step3.model.processing_step3")


def _be_instance(settings: dict[str, Any], nursery: int, connection: socket.socket) -> None:
    status = 1
    try:
        _die_with(nursery)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(connection.fileno())
        from step3.cluster.instance import run_child

        status = run_child(settings)
    except BaseException:
        logging.getLogger("step3.cluster").exception("an instance failed")
    finally:
        sys.stderr.flush()
        # A thread that still computes must not hold the process.
        os._exit(status)


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@dataclass
class BackOff:
    """How long to wait before the next attempt."""

    seconds: float = FIRST_BACK_OFF

    def next(self, lived: float, has_stand_in: bool = False) -> float:
        """Seconds to wait after a process that lived for `lived` seconds.

        Args:
            has_stand_in: another instance does its work meanwhile, and should have the cores to itself while
                it takes that over.
        """
        if lived > OLD_AGE:
            self.seconds = FIRST_BACK_OFF
        wait, self.seconds = self.seconds, min(2 * self.seconds, LONGEST_BACK_OFF)
        return max(wait, STAND_IN_BACK_OFF) if has_stand_in else wait


def usable_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def share_cores(processes: int) -> list[list[int]]:
    """The usable cores dealt out: a part for each process, or one for several if they are few."""
    cores = usable_cores()
    if processes >= len(cores):
        return [[cores[number % len(cores)]] for number in range(processes)]
    bounds = [len(cores) * number // processes for number in range(processes + 1)]
    return [cores[bounds[number] : bounds[number + 1]] for number in range(processes)]


def use_cores(cores: Sequence[int] | None) -> None:
    """Binds this process, before it starts threads, to some cores."""
    if cores:
        os.sched_setaffinity(0, cores)


if __name__ == "__main__":
    main()

"""Instances of this host as processes: started, noticed when they end, and never left behind.

A process gets its settings as the first line of its standard input, which stays open: when whoever started
it ends by any means, the pipe ends, and so does the process. One that is frozen cannot read; the kernel kills
it.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FIRST_BACK_OFF, LONGEST_BACK_OFF = 0.05, 10.0
"""Seconds before a dead process is replaced; doubled each time it dies young."""

OLD_AGE = 10.0
"""Seconds after which a death is no longer taken for a failure to start."""

_PR_SET_PDEATHSIG = 1


@dataclass(eq=False)
class Process:
    """One running process.

    Attributes:
        popen: to wait for and signal it.
        ended: called once, on the event loop, with its exit status.
    """

    popen: subprocess.Popen[bytes]
    ended: Callable[[int], None]
    _pidfd: int = field(default=-1)

    def watch(self) -> None:
        self._pidfd = os.pidfd_open(self.popen.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        status = self.popen.poll()
        if status is None:
            return
        self.forget()
        self.ended(status)

    def forget(self) -> None:
        """Stops watching."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
            if self.popen.stdin is not None:
                self.popen.stdin.close()

    def kill(self) -> None:
        self.popen.kill()


def start(settings: Mapping[str, Any], threads: int, ended: Callable[[int], None]) -> Process:
    """Starts an instance; on the thread of an event loop, which lives as long as the process may."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    popen = subprocess.Popen(
        [sys.executable, "-m", "step3.cluster.instance"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=environment,
        # A Ctrl-C in the terminal is for who started us: it lets requests finish first.
        start_new_session=True,
    )
    process = Process(popen, ended)
    process.watch()
    line = json.dumps({**settings, "parent": os.getpid()}).encode() + b"\n"
    assert popen.stdin is not None
    try:
        popen.stdin.write(line)
        popen.stdin.flush()
    except BrokenPipeError:
        pass  # it has died already, and is noticed
    return process


def read_settings() -> dict[str, Any]:
    """The other end of `start`: takes the settings, and ends this process when its parent does."""
    line = sys.stdin.buffer.readline()
    settings: dict[str, Any] = json.loads(line)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != settings["parent"]:
        os._exit(1)
    threading.Thread(target=_end_with_parent, name="step3-lifeline", daemon=True).start()
    return settings


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


@dataclass
class BackOff:
    """How long to wait before the next attempt."""

    seconds: float = FIRST_BACK_OFF

    def next(self, lived: float) -> float:
        """Seconds to wait after a process that lived for `lived` seconds."""
        if lived > OLD_AGE:
            self.seconds = FIRST_BACK_OFF
        wait, self.seconds = self.seconds, min(2 * self.seconds, LONGEST_BACK_OFF)
        return wait


def usable_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def share_cores(processes: int) -> list[list[int]]:
    """The cores that this process may use, dealt out: a part for each, or one for several if they are few."""
    cores = usable_cores()
    if processes >= len(cores):
        return [[cores[number % len(cores)]] for number in range(processes)]
    bounds = [len(cores) * number // processes for number in range(processes + 1)]
    return [cores[bounds[number] : bounds[number + 1]] for number in range(processes)]


def use_cores(cores: Sequence[int] | None) -> None:
    """Binds this process, before it starts threads, to some cores."""
    if cores:
        os.sched_setaffinity(0, cores)

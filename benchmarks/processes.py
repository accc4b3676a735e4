"""What Linux tells of processes."""

from __future__ import annotations

import os
from pathlib import Path


def processor_seconds(pid: int) -> float:
    """What a process has taken of the processor; not what those that it started have."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """The processes that any of its threads started, and that still run."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def family(pid: int) -> list[int]:
    """A process and all that it started, directly or not."""
    return [pid, *(one for child in children(pid) for one in family(child))]

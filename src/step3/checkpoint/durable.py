"""Writes that survive a crash: whole or not there at all."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from step3.checkpoint.errors import CheckpointError

UNFINISHED = ".unfinished"
"""Suffix of a file until it is whole and on disk."""


def write_file(path: Path, data: bytes) -> None:
    """Write `data` so that `path` either holds all of it, also after a power cut, or stays what it was."""
    unfinished = path.with_name(path.name + UNFINISHED)
    with unfinished.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    finish_file(unfinished, path)


def finish_file(unfinished: Path, path: Path) -> None:
    """Give a file, whose contents are on disk already, its final name."""
    unfinished.rename(path)
    sync_folder(path.parent)


def write_at(file: int, data: bytes | memoryview, offset: int) -> int:
    """Write all of `data` into the open file descriptor `file` at `offset`; returns its length."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file, rest, offset)
        rest, offset = rest[written:], offset + written
    return len(data)


def sync_folder(folder: Path) -> None:
    """Put the folder's names on disk: a rename is not durable before."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; the kernel frees it whatever ends the process.

    Raises:
        CheckpointError: another process holds it.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(f"{path.parent}: another process is writing here") from None
        yield

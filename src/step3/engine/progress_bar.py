"""A bar that shows how many requests are answered, and how fast tokens come."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress


class ProgressBar:
    """A bar over a number of requests: rich's, or one that the caller makes as tqdm makes them."""

    def __init__(self, total: int, make: bool | Callable[..., Any]) -> None:
        self._total, self._make = total, make
        self._start = time.monotonic()
        self._read = self._written = 0
        self._rich: Progress | None = None
        self._other: Any = None

    def __enter__(self) -> ProgressBar:
        if callable(self._make):
            self._other = self._make(total=self._total, desc="Answering", dynamic_ncols=True)
        elif self._make:
            self._rich = _progress()
            self._rich.start()
            self._rich.add_task("", total=self._total, speed="")
        return self

    def finished(self, read: int, written: int) -> None:
        """One request more has ended, with so many tokens of prompt and of answers."""
        if self._rich is None and self._other is None:
            return
        self._read += read
        self._written += written
        seconds = max(time.monotonic() - self._start, 1e-6)
        speed = f"in {self._read / seconds:.0f} tokens/s, out {self._written / seconds:.0f} tokens/s"
        if self._rich is not None:
            self._rich.update(self._rich.task_ids[0], advance=1, speed=speed)
        else:
            self._other.set_postfix_str(speed, refresh=False)
            self._other.update(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()
        if self._other is not None:
            self._other.close()


def _progress() -> Progress:
    # A start does not wait for what is only drawn.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("Answering"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[speed]}"),
        console=Console(stderr=True),
    )

"""Where an instance's time goes, by lane: sums for metrics, and, while somebody looks, each span of time."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum

MAX_SPANS = 200_000
"""Spans that are kept; the oldest go first."""


class Stage(IntEnum):
    """What a lane's time goes to."""

    ATTENTION = 0
    """Attention, router, head and sampling: computed here."""
    WIRE = 1
    """Calls and answers on their way."""
    WAITING = 2
    """A call has arrived and waits for the FFN instance, or an answer for the attention instance."""
    FFN = 3
    """Computed by the FFN instance."""


@dataclass(frozen=True)
class Span:
    """One stretch of time of a lane, in nanoseconds of this host's monotonic clock.

    Attributes:
        layer: decoder layer; -1 for what comes before the first and after the last.
        tokens: rows of the batch.
        instance: FFN instance, for the stages on its side; -1 on this one.
    """

    lane: int
    stage: Stage
    layer: int
    start_ns: int
    end_ns: int
    tokens: int
    instance: int = -1


@dataclass
class LaneTimes:
    """What a lane did since the start.

    Attributes:
        seconds: by stage, on the path of its slowest shard.
        steps, calls, tokens: passes through all layers, FFN calls, and rows of those passes.
    """

    seconds: list[float] = field(default_factory=lambda: [0.0] * len(Stage))
    steps: int = 0
    calls: int = 0
    tokens: int = 0


class Timeline:
    """Adds up where time goes; keeps spans while recording.

    Attributes:
        lanes: by lane.
        idle_seconds: when no lane could compute here, though one had a step under way.
    """

    def __init__(self, num_lanes: int) -> None:
        self.lanes = [LaneTimes() for _ in range(num_lanes)]
        self.idle_seconds = 0.0
        self._spans: deque[Span] = deque(maxlen=MAX_SPANS)
        self._record_until = 0.0

    def add(
        self,
        lane: int,
        stage: Stage,
        layer: int,
        start_ns: int,
        end_ns: int,
        tokens: int,
        instance: int = -1,
        *,
        counts: bool = True,
    ) -> None:
        """Notes a stretch of time.

        Args:
            counts: whether it is added to the lane's seconds; of several shards only the slowest is.
        """
        if counts:
            self.lanes[lane].seconds[stage] += (end_ns - start_ns) * 1e-9
        if self._record_until and end_ns > start_ns:
            if time.monotonic() > self._record_until:
                self._record_until = 0.0
                return
            self._spans.append(Span(lane, stage, layer, start_ns, end_ns, tokens, instance))

    @property
    def is_recording(self) -> bool:
        return self._record_until > 0

    def record(self, seconds: float) -> None:
        """Keeps spans for so long; forgets older ones."""
        self._spans.clear()
        self._record_until = time.monotonic() + seconds

    def spans(self) -> list[Span]:
        """What was recorded."""
        return list(self._spans)

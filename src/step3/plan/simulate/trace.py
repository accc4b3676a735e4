"""What happened when, in the form that Perfetto and Chrome read.

The runtime writes the same form, so that a simulated and a measured run can be laid side by side. One
process is one instance; on an attention instance's a thread is a lane. docs/simulator.md describes every
field.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from step3.plan.simulate.errors import SimulationError
from step3.plan.simulate.lanes import Lane
from step3.plan.topology import Topology

MAX_SPANS = 500_000
"""Spans that a recording keeps; later ones are left out."""


@dataclass(frozen=True, slots=True)
class Span:
    """One stretch of work for one lane."""

    stage: str
    """`attention`, `out`, `ffn`, `back`, or `head` behind the last layer."""
    instance: int
    lane: int
    layer: int
    start: float
    """Seconds since the simulation began."""
    seconds: float
    batch: float
    """Sequences of the lane on all cards; prompt tokens count by what they are in the FFN."""


@dataclass(frozen=True, slots=True)
class Served:
    """One computation of the FFN."""

    layer: int
    start: float
    seconds: float
    batch: float
    lanes: tuple[tuple[int, int], ...]
    """(attention instance, lane) of every call that it answers."""
    instance: int | None = None
    """The FFN instance; None for all of them, alike."""


class Recording:
    """Keeps what a pipeline does.

    Attributes:
        spans: in the order in which they were known.
        served: the FFN's computations.
        is_cut: whether there were more than it keeps.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.served_calls: list[Served] = []
        self.is_cut = False

    def span(self, stage: str, lane: Lane, start: float, seconds: float, batch: float) -> None:
        """Keep a span of a lane."""
        if len(self.spans) >= MAX_SPANS:
            self.is_cut = True
            return
        layer = lane.layer - 1 if stage == "head" else lane.layer
        self.spans.append(Span(stage, lane.instance.number, lane.number, layer, start, seconds, batch))

    def served(
        self, lanes: list[Lane], start: float, seconds: float, batch: float, instance: int | None = None
    ) -> None:
        """Keep a computation of the FFN."""
        if len(self.served_calls) < MAX_SPANS:
            whose = tuple((lane.instance.number, lane.number) for lane in lanes)
            self.served_calls.append(Served(lanes[0].layer, start, seconds, batch, whose, instance))


def trace_events(recording: Recording, topology: Topology, instances: int) -> Iterator[dict[str, Any]]:
    """The events of a trace: names first, then spans by their start.

    Args:
        recording: what happened.
        topology: the deployment's.
        instances: attention instances that were simulated one by one.
    """
    ffn = instances + 1
    lanes = sorted({(span.instance, span.lane) for span in recording.spans})
    for instance in sorted({instance for instance, _ in lanes}):
        yield _name("process_name", instance + 1, f"attention {instance}")
        yield _order(instance + 1)
    for instance, lane in lanes:
        yield _name("thread_name", instance + 1, f"lane {lane}", lane)
    if recording.served_calls and not topology.is_monolith:
        alike = "0" if topology.ffn == 1 else f"0 to {topology.ffn - 1}, alike"
        for number in sorted({call.instance for call in recording.served_calls}, key=lambda one: one or 0):
            yield _name("process_name", ffn + (number or 0), f"ffn {alike if number is None else number}")
            yield _order(ffn + (number or 0))
            yield _name("thread_name", ffn + (number or 0), "calls")
    events = [
        _complete(
            span.stage,
            span.instance + 1,
            span.lane,
            span.start,
            span.seconds,
            {"batch": _plain(span.batch), "layer": span.layer},
        )
        for span in recording.spans
    ]
    for call in recording.served_calls if not topology.is_monolith else ():
        whose = [f"{instance}.{lane}" for instance, lane in call.lanes]
        args = {"batch": _plain(call.batch), "layer": call.layer, "lanes": whose}
        events.append(_complete("ffn", ffn + (call.instance or 0), 0, call.start, call.seconds, args))
    yield from sorted(events, key=lambda event: event["ts"])


def write_trace(path: Path, recording: Recording, topology: Topology, instances: int) -> None:
    """Write a trace for ui.perfetto.dev or chrome://tracing.

    Raises:
        SimulationError: the file cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8") as file:
            file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
            for number, event in enumerate(trace_events(recording, topology, instances)):
                file.write((",\n" if number else "") + json.dumps(event))
            file.write("\n]}\n")
    except OSError as error:
        raise SimulationError(f"--trace {path} cannot be written: {error.strerror}") from error


def _name(what: str, pid: int, name: str, tid: int = 0) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def _order(pid: int) -> dict[str, Any]:
    return {"name": "process_sort_index", "ph": "M", "pid": pid, "tid": 0, "args": {"sort_index": pid}}


def _complete(
    name: str, pid: int, tid: int, start: float, seconds: float, args: dict[str, Any]
) -> dict[str, Any]:
    """A span in microseconds; both ends are rounded alike, so that what touches does not overlap."""
    ts, end = round(start * 1e6, 3), round((start + seconds) * 1e6, 3)
    return {
        "name": name,
        "cat": "step3",
        "ph": "X",
        "ts": ts,
        "dur": round(end - ts, 3),
        "pid": pid,
        "tid": tid,
        "args": args,
    }


def _plain(batch: float) -> float | int:
    return int(batch) if batch == int(batch) else round(batch, 3)

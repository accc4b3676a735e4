"""Spans of time of many instances: packed for the way, and written as one trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from step3.engine.timeline import Span, Stage

PackedSpan = list[int]
"""`[lane, stage, layer, start_ns, end_ns, tokens, instance]`."""


@dataclass(frozen=True)
class InstanceSpans:
    """What one instance recorded.

    Attributes:
        name: for people.
        ahead_ns: what the trace's clock is ahead of the instance's.
        has_lanes: whether its lanes are an attention instance's; an FFN instance has one row.
    """

    name: str
    ahead_ns: int
    spans: Sequence[PackedSpan]
    has_lanes: bool


def pack_spans(spans: Iterable[Span]) -> list[PackedSpan]:
    return [
        [one.lane, int(one.stage), one.layer, one.start_ns, one.end_ns, one.tokens, one.instance]
        for one in spans
    ]


def chrome_trace(instances: Sequence[InstanceSpans]) -> dict[str, Any]:
    """One trace of all instances on one clock, in Chrome's and Perfetto's JSON format.

    A process is an instance; an attention instance has two rows for each lane: what it computes, and where
    its call is meanwhile.
    """
    starts = [one.ahead_ns + span[3] for one in instances for span in one.spans]
    origin = min(starts, default=0)
    events: list[dict[str, Any]] = []
    for number, one in enumerate(instances):
        events.append(_name("process_name", number, 0, one.name))
        rows = set()
        for lane, stage, layer, start, end, tokens, instance in one.spans:
            row = 2 * lane + (stage != Stage.ATTENTION) if one.has_lanes else 0
            rows.add(row)
            arguments: dict[str, Any] = {"layer": layer, "tokens": tokens}
            if instance >= 0:
                arguments["ffn_instance"] = instance
            events.append(
                {
                    "name": Stage(stage).name.lower(),
                    "cat": Stage(stage).name.lower(),
                    "ph": "X",
                    "ts": (start + one.ahead_ns - origin) / 1000,
                    "dur": (end - start) / 1000,
                    "pid": number,
                    "tid": row,
                    "args": arguments,
                }
            )
        for row in sorted(rows):
            label = f"lane {row // 2}{' away' if row % 2 else ''}" if one.has_lanes else "FFN"
            events.append(_name("thread_name", number, row, label))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    arguments: Mapping[str, str] = {"name": name}
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": arguments}

"""What a deployment did between two looks at it: where the time went, what limits it, and who straggles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from step3.cluster.description import straggler
from step3.engine.timeline import Stage

FULL = 0.9
"""Share of the time from which on an instance that computes is what limits the pipeline."""

LEAST_CALLS = 20
"""Calls by which an instance is judged at least."""

MAX_SPANS = 3000
"""Spans of a picture; the latest are kept."""

_COUNTED = ("steps", "calls", "tokens", *(stage.name.lower() for stage in Stage))


def between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The difference of two descriptions, as `describe` gives them, in the same form.

    Every instance has `window_seconds` besides, what passed between its two reports; None if it has only one
    or none, as one that was replaced meanwhile, and then its counters are 0.
    """
    attention = [_attention(_same(one, before["attention"]), one) for one in after["attention"]]
    ffn = [_ffn(_same(one, before["ffn"]), one) for one in after["ffn"]]
    return {
        "topology": after["topology"],
        "attention": attention,
        "ffn": ffn,
        "parked_requests": after["parked_requests"],
        "limit": limit_now(attention, ffn),
        "stragglers": stragglers(attention, ffn),
    }


def limit_now(attention: Sequence[Mapping[str, Any]], ffn: Sequence[Mapping[str, Any]]) -> str:
    """A line that says what more tokens would need."""
    if not ffn:
        return "each attention instance computes its FFNs itself: there is no pipeline"
    busy = {
        **{f"attention {one['instance']}": _busy(one, _computed(one)) for one in attention},
        **{f"FFN {one['instance']}": _busy(one, one["seconds"]) for one in ffn},
    }
    if not any(lane["steps"] for one in attention for lane in one["lanes"]):
        return "nothing is being computed"
    who = max(busy, key=lambda name: busy[name])
    if busy[who] >= FULL:
        line = f"{who} is the limit: it computes {busy[who]:.0%} of the time"
    else:
        line = f"nobody computes all the time ({who} most, {busy[who]:.0%}): more lanes or requests find room"
    slow = stragglers(attention, ffn)
    return f"{line}; {' and '.join(slow)} straggle{'s' * (len(slow) == 1)}" if slow else line


def stragglers(attention: Sequence[Mapping[str, Any]], ffn: Sequence[Mapping[str, Any]]) -> list[str]:
    """Instances that take far longer than others of their role, each by its own clock.

    Longer both for a token and for a call: a small batch costs more for each token, a large one more for each
    call, and neither is a fault.
    """
    work = [
        (f"attention {one['instance']}", _computed(one), _sum(one, "tokens"), _sum(one, "calls"))
        for one in attention
    ]
    ffn_work = [(f"FFN {one['instance']}", one["seconds"], one["tokens"], one["calls"]) for one in ffn]
    found = [_straggler(each) for each in (work, ffn_work)]
    return [name for name in found if name is not None]


def picture(trace: Mapping[str, Any]) -> dict[str, Any]:
    """A trace as rows of a picture.

    Args:
        trace: in Chrome's form, as `chrome_trace` makes it.

    Returns:
        `{"microseconds": its length, "rows": [{"instance", "lane", "spans": [[start, end, stage, layer,
        tokens], ...]}]}`, times in microseconds; lane is None for an FFN instance.
    """
    names = {
        event["pid"]: event["args"]["name"]
        for event in trace["traceEvents"]
        if event["ph"] == "M" and event["name"] == "process_name"
    }
    work = sorted(
        (event for event in trace["traceEvents"] if event["ph"] == "X"),
        key=lambda one: one["ts"] + one["dur"],
    )[-MAX_SPANS:]
    start = min((event["ts"] for event in work), default=0.0)
    rows: dict[tuple[int, int], list[list[Any]]] = {}
    for event in sorted(work, key=lambda one: float(one["ts"])):
        is_lane = names[event["pid"]].startswith("attention")
        key = event["pid"], event["tid"] // 2 if is_lane else -1
        begin = round(event["ts"] - start, 1)
        args = event["args"]
        rows.setdefault(key, []).append(
            [begin, round(begin + event["dur"], 1), event["name"], args["layer"], args["tokens"]]
        )
    return {
        "microseconds": max((span[1] for spans in rows.values() for span in spans), default=0.0),
        "rows": [
            {"instance": names[process], "lane": None if lane < 0 else lane, "spans": spans}
            for (process, lane), spans in sorted(rows.items())
        ],
    }


def _same(one: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The earlier report of the same incarnation of an instance, if there is one."""
    return next(
        (
            other
            for other in before
            if (other["instance"], other["epoch"]) == (one["instance"], one["epoch"])
            and other["told_seconds"] is not None
        ),
        None,
    )


def _window(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> float | None:
    if before is None or after["told_seconds"] is None:
        return None
    passed = float(after["told_seconds"] - before["told_seconds"])
    return passed if passed > 0 else None


def _attention(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> dict[str, Any]:
    window = _window(before, after)
    earlier = before["lanes"] if before is not None and window is not None else after["lanes"]
    # One that has just begun has no lanes to tell of yet.
    earlier = earlier or [dict.fromkeys(_COUNTED, 0)] * len(after["lanes"])
    lanes = [
        {name: now[name] - then[name] for name in _COUNTED}
        for then, now in zip(earlier, after["lanes"], strict=True)
    ]
    idle = (
        after["idle_seconds"] - before["idle_seconds"] if before is not None and window is not None else 0.0
    )
    return {**after, "window_seconds": window, "lanes": lanes, "idle_seconds": idle}


def _ffn(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> dict[str, Any]:
    window = _window(before, after)
    earlier = before if before is not None and window is not None else after
    counted = {name: after[name] - earlier[name] for name in ("seconds", "products", "calls", "tokens")}
    return {**after, "window_seconds": window, **counted}


def _computed(attention: Mapping[str, Any]) -> float:
    return float(sum(lane["attention"] for lane in attention["lanes"]))


def _busy(one: Mapping[str, Any], seconds: float) -> float:
    window = one["window_seconds"]
    return min(seconds / window, 1.0) if window else 0.0


def _sum(attention: Mapping[str, Any], name: str) -> int:
    return int(sum(lane[name] for lane in attention["lanes"]))


def _straggler(work: Sequence[tuple[str, float, int, int]]) -> str | None:
    """Of instances with their seconds, tokens and calls, the one that is slow by both."""
    enough = [one for one in work if one[3] >= LEAST_CALLS]
    by_token = straggler({number: one[1] / one[2] for number, one in enumerate(enough)})
    by_call = straggler({number: one[1] / one[3] for number, one in enumerate(enough)})
    return None if by_token is None or by_token != by_call else enough[by_token][0]

"""How a deployment is doing: its instances, where their time goes, and what limits them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from step3.cluster.registry import Member
from step3.engine.timeline import Stage
from step3.plan.topology import Topology

STRAGGLES_FROM = 1.3
"""An instance that takes this many times as long for a token as the median of its kind straggles."""


def describe(
    topology: Topology,
    members: Sequence[Member],
    address: str | None,
    restarts: Mapping[str, int],
    moved: int,
    parked: int,
) -> dict[str, Any]:
    """All of it, as JSON can carry it.

    Times are seconds since an instance's start; who wants rates takes differences, between `told_seconds` of
    the instance's own clock.
    """
    attention = [_attention(one) for one in members if one.role == "attention"]
    ffn = [_ffn(one) for one in members if one.role == "ffn"]
    return {
        "topology": str(topology),
        "address": address,
        "attention": attention,
        "ffn": ffn,
        "restarts": dict(restarts),
        "moved_requests": moved,
        "parked_requests": parked,
        "limit": limit(attention, ffn),
    }


def _attention(member: Member) -> dict[str, Any]:
    told = member.told
    lanes = [
        {
            **{stage.name.lower(): seconds[stage] for stage in Stage},
            "steps": steps,
            "calls": calls,
            "tokens": tokens,
        }
        for seconds, steps, calls, tokens in told.get("lanes", ())
    ]
    statistics = told.get("statistics", {})
    return {
        **_common(member),
        "lanes": lanes,
        "idle_seconds": told.get("idle_seconds", 0.0),
        "running": statistics.get("running", 0),
        "waiting": statistics.get("waiting", 0),
        "kv_cache_usage": statistics.get("kv_cache_usage", 0.0),
        "link": told.get("link", {}),
        "reachable": told.get("reachable", []),
    }


def _ffn(member: Member) -> dict[str, Any]:
    counts = member.told.get("ffn", {})
    return {
        **_common(member),
        "shard": member.shard,
        "seconds": counts.get("seconds", 0.0),
        "products": counts.get("products", 0),
        "calls": counts.get("calls", 0),
        "tokens": counts.get("tokens", 0),
    }


def _common(member: Member) -> dict[str, Any]:
    sent = member.told.get("sent_ns")
    return {
        "instance": member.instance,
        "state": member.state.value,
        "epoch": member.epoch,
        "pid": member.pid,
        "host": member.host,
        "device": member.told.get("device"),
        "told_seconds": None if sent is None else sent * 1e-9,
    }


def limit(attention: Sequence[Mapping[str, Any]], ffn: Sequence[Mapping[str, Any]]) -> str:
    """A line that says what the pipeline's time goes to, and who straggles."""
    lanes = [lane for one in attention for lane in one["lanes"]]
    steps = sum(lane["steps"] for lane in lanes)
    if not steps:
        return "nothing was computed yet"
    computing = sum(lane["attention"] for lane in lanes)
    idle = sum(one["idle_seconds"] for one in attention)
    busy_ffn = max((one["seconds"] for one in ffn), default=0.0)
    busy_attention = max((sum(lane["attention"] for lane in one["lanes"]) for one in attention), default=0.0)
    bubbles = idle / (idle + computing) if idle + computing else 0.0
    on_wire = sum(lane["wire"] for lane in lanes)
    if busy_attention >= busy_ffn:
        which = "attention instances compute longer than FFN instances"
    else:
        which = "FFN instances compute longer than attention instances"
    wire = f"{on_wire / steps * 1e3:.2f} ms of a step are wire"
    line = f"{which}; attention waits {bubbles:.0%} of its time; {wire}"
    slow = straggler(
        {one["instance"]: one["seconds"] / one["tokens"] for one in ffn if one["tokens"] and one["products"]}
    )
    return line if slow is None else f"{line}; FFN instance {slow} straggles"


def straggler(costs: Mapping[int, float]) -> int | None:
    """The instance that takes far longer than the others of its role.

    Args:
        costs: seconds for a token, by instance, each by its own clock.
    """
    if len(costs) < 2:
        return None
    ordered = sorted(costs.values())
    worst = max(costs, key=lambda instance: costs[instance])
    return worst if costs[worst] > STRAGGLES_FROM * ordered[(len(ordered) - 1) // 2] else None

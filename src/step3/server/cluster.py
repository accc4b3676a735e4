"""A deployment of many instances over HTTP: how it does, a trace of it, and changes to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from fastapi import FastAPI, Query
from pydantic import BaseModel, ConfigDict, Field

from step3.cluster.window import between, picture
from step3.server.answering import Answering

MAX_TRACE_SECONDS = 60.0
PICTURE_SECONDS = 0.25
"""How much of the pipeline its live picture shows."""
STAGES = ("attention", "wire", "waiting", "ffn")


class ClusterChange(BaseModel):
    """Body of POST /cluster.

    Attributes:
        number: the instance to be drained, or the shard of which a replica is added; unused for attention.
    """

    model_config = ConfigDict(extra="forbid")
    action: Literal["drain", "add"]
    role: Literal["attention", "ffn"]
    number: int = Field(0, ge=0, le=1 << 20)


def add_cluster(app: FastAPI, answering: Answering) -> None:
    """Adds the paths under /cluster; a server of one process answers them with 400."""

    @app.get("/cluster", summary="The instances, where their time goes, and what limits them")
    async def cluster() -> dict[str, Any]:
        return await answering.ask("cluster", {"action": "describe"})

    @app.get("/cluster/live", summary="What the instances do now: rates, what limits them, and a short trace")
    async def live(seconds: float = Query(1.0, ge=0.5, le=10.0)) -> dict[str, Any]:
        before = await answering.ask("cluster", {"action": "describe"})
        await asyncio.sleep(seconds - PICTURE_SECONDS)
        traced = await answering.ask("cluster", {"action": "trace", "seconds": PICTURE_SECONDS})
        after = await answering.ask("cluster", {"action": "describe"})
        return {**between(before, after), "picture": picture(traced)}

    @app.get("/cluster/trace", summary="A trace of all instances for Chrome or Perfetto")
    async def trace(seconds: float = Query(2.0, gt=0, le=MAX_TRACE_SECONDS)) -> dict[str, Any]:
        return await answering.ask("cluster", {"action": "trace", "seconds": seconds})

    @app.post("/cluster", summary="Drain an instance, or add one")
    async def change(body: ClusterChange) -> dict[str, str]:
        return {"done": await answering.ask("cluster", body.model_dump())}


def metrics(described: Mapping[str, Any]) -> Iterator[str]:
    """Prometheus lines of a deployment, as `Front.describe` gives it."""
    yield from _family(
        "instances_up",
        "gauge",
        "Instances by role and state.",
        (
            (_labels(role=role, instance=one["instance"], state=one["state"]), 1)
            for role in ("attention", "ffn")
            for one in described[role]
        ),
    )
    yield from _family(
        "instance_restarts_total",
        "counter",
        "Dead processes that were replaced.",
        ((_labels(role=role), count) for role, count in sorted(described["restarts"].items())),
    )
    yield from _family(
        "moved_requests_total",
        "counter",
        "Requests that went on at another instance when theirs died.",
        [("", described["moved_requests"])],
    )
    attention, ffn = described["attention"], described["ffn"]
    yield from _family(
        "lane_seconds_total",
        "counter",
        "Where the time of each lane goes.",
        (
            (_labels(instance=one["instance"], lane=number, stage=stage), lane[stage])
            for one in attention
            for number, lane in enumerate(one["lanes"])
            for stage in STAGES
        ),
    )
    for name in ("steps", "calls", "tokens"):
        yield from _family(
            f"lane_{name}_total",
            "counter",
            f"{name.capitalize()} of each lane; tokens by steps is the batch size.",
            (
                (_labels(instance=one["instance"], lane=number), lane[name])
                for one in attention
                for number, lane in enumerate(one["lanes"])
            ),
        )
    yield from _family(
        "attention_idle_seconds_total",
        "counter",
        "Time in which all lanes with work waited for FFNs: bubbles.",
        ((_labels(instance=one["instance"]), one["idle_seconds"]) for one in attention),
    )
    for name in ("seconds", "products", "calls", "tokens"):
        yield from _family(
            f"ffn_{name}_total",
            "counter",
            f"{name.capitalize()} of each FFN instance; calls by products is how many are merged.",
            ((_labels(instance=one["instance"], shard=one["shard"]), one[name]) for one in ffn),
        )
    for name, what in (("resent", "Calls asked again"), ("late", "Answers too late"), ("lost", "Lost peers")):
        yield from _family(
            f"link_{name}_total",
            "counter",
            f"{what}.",
            ((_labels(instance=one["instance"]), one["link"].get(name, 0)) for one in attention),
        )


def _family(
    name: str, kind: str, what: str, samples: Iterator[tuple[str, float]] | Sequence[tuple[str, float]]
) -> Iterator[str]:
    yield f"# HELP step3_{name} {what}"
    yield f"# TYPE step3_{name} {kind}"
    for labels, value in samples:
        yield f"step3_{name}{labels} {value}"


def _labels(**labels: Any) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"

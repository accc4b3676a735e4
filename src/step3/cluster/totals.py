"""Statistics of many engines as those of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from step3.engine.sampling.speculation import SpeculationCounts
from step3.engine.statistics import FIRST_TOKEN_BOUNDS, PER_TOKEN_BOUNDS, Histogram, Statistics

_SUMS = (
    "waiting",
    "running",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "computed_tokens",
    "prompt_tokens",
    "generation_tokens",
    "generation_tokens_per_second",
    "preemptions",
)
_HISTOGRAMS = {
    "time_to_first_token": FIRST_TOKEN_BOUNDS,
    "time_per_output_token": PER_TOKEN_BOUNDS,
    "request_time": FIRST_TOKEN_BOUNDS,
}


def total(engines: Sequence[Mapping[str, Any]], parked: int = 0) -> Statistics:
    """The sum of what engines counted, each as `dataclasses.asdict` gives it.

    Args:
        parked: requests that wait for an engine to be there.
    """
    values: dict[str, Any] = {name: sum(one[name] for one in engines) for name in _SUMS}
    values["waiting"] += parked
    running = [one["kv_cache_usage"] for one in engines if one["running"]]
    finished: Counter[str] = Counter()
    for one in engines:
        finished.update(one["finished"])
    drafted = [one["speculation"] for one in engines]
    for name, bounds in _HISTOGRAMS.items():
        values[name] = _sum([one[name] for one in engines], bounds)
    return Statistics(
        **values,
        kv_cache_usage=max(running, default=0.0),
        finished=dict(finished),
        speculation=SpeculationCounts(
            sum(one["drafted"] for one in drafted), sum(one["accepted"] for one in drafted)
        ),
    )


def retired(engines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What engines that have ended counted, as that of one which does nothing any more."""
    counted = total(engines)
    idle = replace(counted, waiting=0, running=0, kv_cache_usage=0.0, generation_tokens_per_second=0.0)
    return asdict(idle)


def _sum(histograms: Sequence[Mapping[str, Any]], bounds: tuple[float, ...]) -> Histogram:
    counts = [0] * (len(bounds) + 1)
    for one in histograms:
        counts = [a + b for a, b in zip(counts, one["counts"], strict=True)]
    return Histogram(bounds, tuple(counts), sum(one["sum"] for one in histograms))

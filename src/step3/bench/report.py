"""What runs came to: percentiles, a table, JSON and a plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from step3.bench.load import Load, Run
from step3.plan.canvas import COLOURS, MARKERS, drawing
from step3.plan.simulate.requests import ClosedLoop, OpenLoop

PERCENTILES = (50, 90, 99)
_LATE_SECONDS = 0.05
_BUSY_CORES = 0.8


def load_name(load: Load) -> str:
    """How a load is called."""
    if isinstance(load, ClosedLoop):
        return f"{load.concurrency} at once"
    if isinstance(load, OpenLoop):
        return f"{load.rate:g} a second"
    return load.path.name


def summary(run: Run) -> dict[str, Any]:
    """A run in numbers; times in milliseconds, of the answers that came whole."""
    whole = [sample for sample in run.samples if sample.error is None]
    seconds = run.seconds or float("nan")
    load = run.load
    return {
        "load": load_name(load),
        "concurrency": load.concurrency if isinstance(load, ClosedLoop) else None,
        "rate": load.rate if isinstance(load, OpenLoop) else None,
        "requests": len(run.samples),
        "completed": len(whole),
        "failed": len(run.samples) - len(whole),
        "errors": dict(Counter(sample.error for sample in run.samples if sample.error).most_common()),
        "seconds": run.seconds,
        "sent_late_ms": run.late * 1e3,
        "client_cores": run.processor_seconds / seconds if run.samples else 0.0,
        "prompt_tokens": sum(sample.prompt_tokens or 0 for sample in whole),
        "output_tokens": sum(sample.output_tokens for sample in whole),
        "requests_per_second": len(whole) / seconds if whole else 0.0,
        "output_tokens_per_second": sum(sample.output_tokens for sample in whole) / seconds if whole else 0.0,
        "ttft_ms": _spread(sample.ttft for sample in whole),
        "tpot_ms": _spread(sample.tpot for sample in whole),
        "gap_ms": _spread(gap for sample in whole for gap in sample.gaps),
        "end_to_end_ms": _spread(sample.seconds for sample in whole),
    }


def _spread(seconds: Iterable[float | None]) -> dict[str, float] | None:
    """Mean, percentiles and largest, in milliseconds; None without a value."""
    values = np.array([value for value in seconds if value is not None]) * 1e3
    if not len(values):
        return None
    found = {
        f"p{q}": float(value)
        for q, value in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)
    }
    return {"mean": float(values.mean()), **found, "max": float(values.max())}


def results_tables(results: Sequence[dict[str, Any]]) -> list[Table]:
    """The runs below each other: what was done, and how long it took."""
    done = _table("load", "requests", "failed", "seconds", "req/s", "tokens/s")
    took = _table(
        "load", *(f"{name}\np{q}" for name in ("TTFT ms", "TPOT ms", "whole s") for q in PERCENTILES)
    )
    for result in results:
        failed = result["failed"]
        done.add_row(
            result["load"],
            f"{result['requests']:,}",
            f"[bold red]{failed:,}[/]" if failed else "0",
            f"{result['seconds']:,.1f}",
            f"{result['requests_per_second']:,.2f}",
            f"{result['output_tokens_per_second']:,.1f}",
        )
        times = (("ttft_ms", 1.0), ("tpot_ms", 1.0), ("end_to_end_ms", 1e-3))
        took.add_row(result["load"], *(cell for name, unit in times for cell in _cells(result[name], unit)))
    return [done, took]


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=False)
    table.add_column(first, no_wrap=True)
    for head in others:
        table.add_column(head, justify="right")
    return table


def _cells(spread: dict[str, float] | None, unit: float) -> list[str]:
    if spread is None:
        return ["–"] * len(PERCENTILES)
    return [_three_digits(spread[f"p{q}"] * unit) for q in PERCENTILES]


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def warnings(results: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader of the table must know: every error, and a client that was too slow."""
    told = []
    for result in results:
        told += [f"{result['load']}: {count:,} × {error}" for error, count in result["errors"].items()]
        if result["client_cores"] > _BUSY_CORES:
            told.append(
                f"{result['load']}: this client computed {result['client_cores']:.0%} of the time itself"
            )
        if result["sent_late_ms"] > _LATE_SECONDS * 1e3:
            told.append(
                f"{result['load']}: requests were sent up to {result['sent_late_ms']:,.0f} ms late: this "
                "client was at its limit, and the times say less than they seem to"
            )
    return told


def draw(results: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Plots times and throughput over the load, as PNG.

    Raises:
        PlanError: matplotlib is missing.
        OSError: the file cannot be written.
    """
    with drawing(10.5, 3.6, columns=3) as (figure, axes):
        _draw_times(axes[0], results, "ttft_ms", "time to first token, ms")
        _draw_times(axes[1], results, "tpot_ms", "time per token after it, ms")
        _draw_throughput(axes[2], results)
        for panel in axes:
            panel.set_xticks(range(len(results)), _ticks(results))
            panel.set_xlim(-0.6, len(results) - 0.4)
            panel.set_xlabel(_axis(results))
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        figure.savefig(path, dpi=160, format="png")


def _draw_times(panel: Any, results: Sequence[dict[str, Any]], name: str, label: str) -> None:
    for i, q in enumerate(PERCENTILES):
        for is_open in (False, True):
            # Concurrencies and rates are no one scale: no line leads from the one to the other.
            places = [
                x for x, result in enumerate(results) if result[name] and bool(result["rate"]) is is_open
            ]
            values = [results[x][name][f"p{q}"] for x in places]
            panel.plot(
                places, values, color=COLOURS[i], marker=MARKERS[i], label=None if is_open else f"p{q}"
            )
    panel.set(ylabel=label)
    panel.set_ylim(bottom=0)
    handles = [line for line, _ in zip(panel.lines[::2], PERCENTILES, strict=False)]
    panel.legend(handles, [f"p{q}" for q in PERCENTILES])


def _draw_throughput(panel: Any, results: Sequence[dict[str, Any]]) -> None:
    rates = [result["output_tokens_per_second"] for result in results]
    panel.bar(range(len(results)), rates, color=COLOURS[0], width=0.6)
    for x, (result, rate) in enumerate(zip(results, rates, strict=True)):
        written = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
        panel.annotate(_three_digits(rate), (x, rate), (0, 3), **written)
        if result["failed"]:
            panel.annotate(f"{result['failed']:,} failed", (x, rate), (0, 14), color=COLOURS[4], **written)
    panel.set(ylabel="output tokens/s")
    panel.margins(y=0.15)


def _ticks(results: Sequence[dict[str, Any]]) -> list[str]:
    if _axis(results) == "load":
        return [result["load"].replace(" a second", "/s") for result in results]
    return [f"{result['concurrency'] or result['rate']:g}" for result in results]


def _axis(results: Sequence[dict[str, Any]]) -> str:
    if all(result["concurrency"] for result in results):
        return "requests at once"
    return "requests a second" if all(result["rate"] for result in results) else "load"

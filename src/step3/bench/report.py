"""What runs came to: percentiles, a table, JSON and a plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from step3.bench.load import Load, Run
from step3.plan.simulate.requests import ClosedLoop, OpenLoop

PERCENTILES = (50, 90, 99)
_LATE_SECONDS = 0.05


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


def results_table(results: Sequence[dict[str, Any]]) -> Table:
    """The runs side by side."""
    table = Table(box=None, header_style="dim", padding=(0, 1), pad_edge=False)
    table.add_column("load", no_wrap=True)
    heads = ["done", "failed", "req/s", "tokens/s"]
    heads += ["TTFT ms p50", "p90", "p99", "TPOT ms p50", "p90", "p99", "whole s p50", "p99"]
    for head in heads:
        table.add_column(head, justify="right")
    for result in results:
        times = [_cells(result[name], (50, 90, 99)) for name in ("ttft_ms", "tpot_ms")]
        whole = _cells(result["end_to_end_ms"], (50, 99), 1e-3)
        failed = result["failed"]
        table.add_row(
            result["load"],
            f"{result['completed']:,}",
            f"[bold red]{failed:,}[/]" if failed else "0",
            f"{result['requests_per_second']:,.2f}",
            f"{result['output_tokens_per_second']:,.1f}",
            *times[0],
            *times[1],
            *whole,
        )
    return table


def _cells(spread: dict[str, float] | None, percentiles: Sequence[int], unit: float = 1.0) -> list[str]:
    if spread is None:
        return ["–"] * len(percentiles)
    return [_three_digits(spread[f"p{q}"] * unit) for q in percentiles]


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def warnings(results: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader of the table must know: every error, and a client that was too slow."""
    told = []
    for result in results:
        told += [f"{result['load']}: {count:,} × {error}" for error, count in result["errors"].items()]
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
    from step3.plan.canvas import COLOURS, MARKERS, drawing

    with drawing(10.5, 3.6, columns=3) as (figure, axes):
        places = range(len(results))
        for panel, (name, label) in zip(
            axes, (("ttft_ms", "TTFT, ms"), ("tpot_ms", "TPOT, ms")), strict=False
        ):
            for i, q in enumerate(PERCENTILES):
                points = [(x, results[x][name][f"p{q}"]) for x in places if results[x][name]]
                if points:
                    xs, ys = zip(*points, strict=True)
                    panel.plot(xs, ys, color=COLOURS[i], marker=MARKERS[i], label=f"p{q}")
            panel.set(ylabel=label, title=label.partition(",")[0])
            panel.set_ylim(bottom=0)
            if panel.lines:
                panel.legend()
        rates = [result["output_tokens_per_second"] for result in results]
        axes[2].bar(places, rates, color=COLOURS[0], width=0.6)
        for x, rate in zip(places, rates, strict=True):
            axes[2].annotate(
                _three_digits(rate), (x, rate), (0, 3), textcoords="offset points", ha="center", fontsize=8
            )
            if results[x]["failed"]:
                told = f"{results[x]['failed']:,} failed"
                axes[2].annotate(
                    told, (x, 0), (0, 4), textcoords="offset points", ha="center", color=COLOURS[4]
                )
        axes[2].set(ylabel="output tokens/s", title="Throughput")
        axes[2].margins(y=0.12)
        for panel in axes:
            panel.set_xticks(list(places), [result["load"].removesuffix(" at once") for result in results])
            panel.set_xlim(-0.6, len(results) - 0.4)
            panel.set_xlabel(_axis(results))
        figure.suptitle(title, x=0.01, ha="left", fontsize=9, color="#6b7280")
        figure.savefig(path, dpi=160, format="png")


def _axis(results: Sequence[dict[str, Any]]) -> str:
    if all(result["concurrency"] for result in results):
        return "requests at once"
    return "requests a second" if all(result["rate"] for result in results) else "load"

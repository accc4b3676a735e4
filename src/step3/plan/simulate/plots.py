"""Pictures of a run: the pipeline as a Gantt chart, and the run over time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from step3.plan.canvas import COLOURS, INK, drawing, save
from step3.plan.simulate.errors import SimulationError
from step3.plan.simulate.result import Result
from step3.plan.simulate.trace import Recording, Span

STAGE_COLOURS = {
    "attention": COLOURS[0],
    "out": COLOURS[1],
    "ffn": COLOURS[2],
    "back": "#efb980",
    "head": COLOURS[3],
}
"""Attention, wire and FFN apart at a glance; the two ways of the wire are shades of one colour."""

LABELS = {
    "attention": "attention",
    "out": "wire out",
    "ffn": "FFN",
    "back": "wire back",
    "head": "output head",
}

LAYERS_SHOWN = 7
MAX_ROWS = 24


def draw_gantt(recording: Recording, title: str, folder: Path) -> list[Path]:
    """Draw the first layers of a recording, a lane a row, as PNG and SVG.

    Raises:
        SimulationError: nothing was recorded.
        PlanError: matplotlib is missing, or the folder cannot be written to.
    """
    if not recording.spans:
        raise SimulationError(
            "nothing happened in the span that was to be drawn: move it with --trace-from and --trace-for"
        )
    start, end = _shown(recording.spans)
    shown = [span for span in recording.spans if span.start < end and span.start + span.seconds > start]
    rows = sorted({(span.instance, span.lane) for span in shown})[:MAX_ROWS]
    calls = [
        call for call in recording.served_calls if call.start < end and call.start + call.seconds > start
    ]
    labels = [f"A{instance}, lane {lane}" for instance, lane in rows] + (["F"] if calls else [])
    with drawing(9.0, 1.5 + 0.34 * len(labels)) as (figure, axes):
        for height, row in enumerate(rows):
            for span in shown:
                if (span.instance, span.lane) == row:
                    _bar(axes, height, span.start, span.seconds, span.stage, str(span.layer), start, end)
        for call in calls:
            text = f"{call.layer}" if len(call.lanes) == 1 else f"{call.layer}×{len(call.lanes)}"
            _bar(axes, len(rows), call.start, call.seconds, "ffn", text, start, end)
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.set_xlim(0, (end - start) * 1e3)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"ms after {start:.4f} s; the number is the layer, blank is waiting")
        axes.set_title(title)
        _legend(figure, {span.stage for span in shown})
        return save(figure, folder, "gantt")


def _shown(spans: Sequence[Span]) -> tuple[float, float]:
    """About `LAYERS_SHOWN` layers of the first lane, from where every lane has its spans."""
    first = min(spans, key=lambda span: span.start)
    starts = sorted(
        span.start
        for span in spans
        if span.stage == "attention" and (span.instance, span.lane) == (first.instance, first.lane)
    )
    if len(starts) <= LAYERS_SHOWN + 1:
        return first.start, max(span.start + span.seconds for span in spans)
    return starts[1], starts[1 + LAYERS_SHOWN]


def _bar(
    axes: Any, row: int, begin: float, seconds: float, stage: str, text: str, start: float, end: float
) -> None:
    left, right = max(begin, start), min(begin + seconds, end)
    axes.barh(
        row,
        (right - left) * 1e3,
        left=(left - start) * 1e3,
        height=0.78,
        color=STAGE_COLOURS[stage],
        edgecolor="white",
        linewidth=0.5,
    )
    if right - left > 0.02 * (end - start):
        colour = INK if stage == "back" else "white"
        middle = ((left + right) / 2 - start) * 1e3
        axes.text(middle, row, text, ha="center", va="center", fontsize=6.5, color=colour, clip_on=True)


def _legend(figure: Any, stages: set[str]) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(color=colour, label=LABELS[name]) for name, colour in STAGE_COLOURS.items() if name in stages
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def draw_timeline(result: Result, title: str, folder: Path) -> list[Path]:
    """Draw output, cache and queue over simulated time, as PNG and SVG.

    Raises:
        PlanError: matplotlib is missing, or the folder cannot be written to.
    """
    panels = (
        ("tokens a second", result.output_rate, COLOURS[4], 1.0, None),
        ("cache taken, %", result.cache_share, COLOURS[0], 100.0, 100.0),
        ("requests waiting", result.queue, COLOURS[3], 1.0, None),
    )
    with drawing(10.5, 2.9, columns=3) as (figure, axes):
        for panel, (label, points, colour, scale, top) in zip(axes, panels, strict=True):
            panel.plot([at for at, _ in points], [value * scale for _, value in points], color=colour)
            highest = max((value * scale for _, value in points), default=0.0)
            panel.set_ylim(0, top or max(1.1 * highest, 1.0))
            panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            panel.set(xlabel="seconds", ylabel=label)
        axes[0].set_title(title)
        return save(figure, folder, "timeline")

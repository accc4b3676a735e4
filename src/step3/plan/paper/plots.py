"""The paper's figures 1 to 5, drawn from the computed cells; hollow marks are what the paper prints."""

from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import Any

from step3.plan.canvas import COLOURS, INK, MARKERS, drawing, save
from step3.plan.paper.cells import Cell
from step3.plan.paper.printed import Path

_CARDS = ("H800", "H20", "A800", "910B")
_PRINTED = {
    "facecolors": "none",
    "edgecolors": INK,
    "linewidths": 0.9,
    "s": 22,
    "zorder": 4,
    "label": "printed",
}


class _Lookup:
    """Computed and printed numbers of one section."""

    def __init__(self, cells: Sequence[Cell], where: str) -> None:
        self.cells = {cell.path: cell for cell in cells if cell.where == where}

    def computed(self, *path: str | int) -> float:
        return self.cells[path].computed

    def printed(self, *path: str | int) -> float:
        return self.cells[path].printed

    def names(self, level: int = 0) -> list[str]:
        names = dict.fromkeys(str(path[level]) for path in self.cells if len(path) > level)
        return [name for name in names if not name.startswith("_")]


def draw_figures(
    cells: Sequence[Cell], folder: FilePath, numbers: Sequence[int] | None = None
) -> list[FilePath]:
    """Draw figures (all by default) into `folder` as PNG and SVG.

    Raises:
        PlanError: matplotlib is missing, or the folder cannot be written to.
    """
    drawers: dict[int, Callable[[Sequence[Cell], FilePath], list[FilePath]]] = {
        1: _figure1,
        2: _figure2,
        3: _figure3,
        4: _figure4,
        5: _figure5,
    }
    return [path for number in numbers or drawers for path in drawers[number](cells, folder)]


def _figure1(cells: Sequence[Cell], folder: FilePath) -> list[FilePath]:
    points = _Lookup(cells, "fig1_pareto_8k")
    names = points.names()
    with drawing(6.4, 4.0) as (figure, axes):
        where = {
            name: (points.computed(name, "cost_usd_per_1m_8k"), points.computed(name, "activated_b"))
            for name in names
        }
        front = [
            name
            for name, (cost, active) in where.items()
            if not any(c < cost and a > active for c, a in where.values())
        ]
        line = sorted(where[name] for name in front)
        axes.plot(*zip(*line, strict=True), color=COLOURS[4], linewidth=1, linestyle="--", zorder=1)
        for name, (cost, active) in where.items():
            own = name == "Step-3"
            axes.scatter(cost, active, s=70 if own else 38, color=COLOURS[4 if own else 0], zorder=3)
            axes.annotate(
                name,
                (cost, active),
                xytext=(0, 9) if own else (8, 4),
                textcoords="offset points",
                ha="center" if own else "left",
                fontweight="bold" if own else "normal",
            )
        printed = [
            (points.printed(name, "cost_usd_per_1m_8k"), points.printed(name, "activated_b"))
            for name in names
        ]
        axes.scatter(*zip(*printed, strict=True), **{**_PRINTED, "s": 95})
        axes.set(
            xlabel="USD for 1M tokens at 8K, AFD",
            ylabel="active parameters, 1e9",
            xlim=(0.05, 0.105),
            ylim=(10, 52),
        )
        axes.set_title("Figure 1: what an active parameter costs to decode")
        axes.legend(loc="lower right")
        return save(figure, folder, "figure1")


def _bars(
    axes: Any, look: _Lookup, rows: Sequence[str], columns: Sequence[str], colours: Sequence[str]
) -> None:
    """Grouped bars, rows along the axis, with hollow marks at the printed heights."""
    width = 0.8 / len(columns)
    marks: list[tuple[float, float]] = []
    for i, column in enumerate(columns):
        at = [row - 0.4 + width * (i + 0.5) for row in range(len(rows))]
        heights = [look.computed(row, column) for row in rows]
        bars = axes.bar(
            at,
            heights,
            width * 0.88,
            color=colours[i],
            label=column.replace("_8k", " 8K").replace("_32k", " 32K"),
        )
        axes.bar_label(bars, [f"{height:.3f}" for height in heights], padding=5, fontsize=6.5, rotation=90)
        marks += zip(at, (look.printed(row, column) for row in rows), strict=True)
    axes.scatter(*zip(*marks, strict=True), **_PRINTED)
    axes.set_xticks(range(len(rows)), rows)
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.16)


def _figure2(cells: Sequence[Cell], folder: FilePath) -> list[FilePath]:
    with drawing(9.2, 3.8, columns=2) as (figure, both):
        for axes, label in zip(both, ("8k", "32k"), strict=True):
            look = _Lookup(cells, f"fig2_{label}_usd_per_1m")
            columns = [*_CARDS, "AFD"]
            _bars(axes, look, look.names(), columns, [*COLOURS[:4], COLOURS[4]])
            axes.set_title(f"Figure 2: cost at {label.upper()}")
            axes.set_ylabel("USD for 1M tokens")
        both[0].legend(ncols=3, loc="upper left")
        both[0].set_ylim(0, 0.27)
        return save(figure, folder, "figure2")


def _figure3(cells: Sequence[Cell], folder: FilePath) -> list[FilePath]:
    panels = (
        ("fig3_kv_gb", "Figure 3: KV and state moved", "GB for one token", (0.25, 0.5, 1, 2, 4, 8)),
        (
            "fig3_cost_h800_usd_per_1m",
            "Figure 3: cost on H800",
            "USD for 1M tokens",
            (0.0625, 0.125, 0.25, 0.5, 1),
        ),
    )
    with drawing(8.0, 3.5, columns=2) as (figure, both):
        for axes, (where, title, unit, ticks) in zip(both, panels, strict=True):
            look = _Lookup(cells, where)
            contexts = ("8K", "32K", "128K")
            for i, name in enumerate(("Step-3", "Llama 4 M", "MM M1")):
                heights = [look.computed(name, context) for context in contexts]
                axes.plot(contexts, heights, color=COLOURS[(4, 0, 2)[i]], marker=MARKERS[i], label=name)
            marks = [(context, look.printed(name, context)) for name in look.names() for context in contexts]
            axes.scatter(*zip(*marks, strict=True), **{**_PRINTED, "s": 70})
            axes.set(xlabel="context", ylabel=unit, yscale="log")
            axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
            axes.set_title(title)
        both[0].legend(loc="upper left")
        return save(figure, folder, "figure3")


def _figure4(cells: Sequence[Cell], folder: FilePath) -> list[FilePath]:
    look = _Lookup(cells, "fig4_910b_usd_per_1m")
    with drawing(5.4, 3.6) as (figure, axes):
        _bars(axes, look, look.names(), ("decode_8k", "decode_32k", "train_8k"), COLOURS)
        axes.set_title("Figure 4: decoding and training on 910B")
        axes.set_ylabel("USD for 1M tokens")
        axes.legend(loc="upper right")
        return save(figure, folder, "figure4")


def _figure5(cells: Sequence[Cell], folder: FilePath) -> list[FilePath]:
    points = _Lookup(cells, "fig5_points_gb_gflop")
    lines = _Lookup(cells, "fig5_plotted_hw_line_slopes_flop_per_byte")
    with drawing(6.4, 4.2) as (figure, axes):
        for card in _CARDS:
            slope = lines.computed(card)
            end = min(3.4, 650 / slope)
            axes.plot([0, end], [0, slope * end], color="#9aa3ad", linewidth=1.1, zorder=1)
            axes.annotate(
                f"{card}, {slope:.0f} FLOP/byte",
                (end, slope * end),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=7.5,
                color="#6b7280",
                va="center",
            )
        for i, name in enumerate(("Step-3", "DSv3", "Qwen3 MoE")):
            colour = COLOURS[(4, 0, 2)[i]]
            at = [(points.computed(name, c, 0), points.computed(name, c, 1)) for c in ("8K", "32K")]
            axes.plot(*zip(*at, strict=True), color=colour, marker=MARKERS[i], zorder=3)
            beside = {"xytext": (12, 4), "textcoords": "offset points", "fontweight": "bold"}
            axes.annotate(name, at[1], color=colour, **beside)
            for (x, y), context in zip(at, ("8K", "32K"), strict=True):
                axes.annotate(context, (x, y), xytext=(6, -9), textcoords="offset points", fontsize=7.5)
        paths: list[Path] = [(name, context) for name in points.names() for context in ("8K", "32K")]
        marks = [(points.printed(*path, 0), points.printed(*path, 1)) for path in paths]
        axes.scatter(*zip(*marks, strict=True), **{**_PRINTED, "s": 75})
        axes.set(xlabel="KV of one token, GB", ylabel="attention's core, GFLOP", xlim=(0, 4.3), ylim=(0, 690))
        axes.set_title("Figure 5: attention against the cards' rooflines")
        axes.legend(loc="upper right")
        return save(figure, folder, "figure5")

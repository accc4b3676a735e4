"""Plots of a plan: cost against context, cost against speed, and the rooflines it works at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from step3.plan.attention import Counting
from step3.plan.canvas import COLOURS, INK, MARKERS, drawing, save
from step3.plan.evaluate import Demand, Outcome, roofline_times
from step3.plan.ffn import ffn_flops
from step3.plan.hardware import Hardware
from step3.plan.precision import BYTES
from step3.plan.search import Ranking, Space, search
from step3.plan.shape import token_work

CONTEXTS = (1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16, 1 << 17)
TARGETS_MS = (15, 20, 25, 33, 50, 75, 100)


@dataclass(frozen=True)
class Curve:
    """One line of a plot."""

    name: str
    points: list[tuple[float, float]]


Progress = Callable[[str, int, int], None]


def context_curves(demand: Demand, space: Space, progress: Progress) -> list[Curve]:
    """USD for a million tokens over the mean context: the best split, and the best of each card alone."""
    longest = demand.model.max_context
    factors = [
        (length, length / demand.contexts.mean) for length in CONTEXTS if not longest or length <= longest
    ]
    rankings = []
    for done, (length, factor) in enumerate(factors, 1):
        changed = replace(demand, contexts=demand.contexts.scaled(factor))
        rankings.append((float(length), search(changed, space)))
        progress("cost against context", done, len(factors))
    return _curves(rankings)


def speed_curves(demand: Demand, space: Space, progress: Progress) -> list[Curve]:
    """USD for a million tokens over tokens a second and sequence."""
    rankings = []
    for done, target in enumerate(TARGETS_MS, 1):
        changed = replace(demand, tpot=target * 1e-3)
        rankings.append((1e3 / target, search(changed, space)))
        progress("cost against speed", done, len(TARGETS_MS))
    return _curves(rankings)


def _curves(rankings: Sequence[tuple[float, Ranking]]) -> list[Curve]:
    split: list[tuple[float, float]] = []
    alone: dict[str, list[tuple[float, float]]] = {}
    for x, ranking in rankings:
        if ranking.afd:
            split.append((x, ranking.afd[0].usd_per_million))
        best: dict[str, Outcome] = {}
        for outcome in ranking.monoliths:
            best.setdefault(outcome.deployment.attention.name, outcome)
        for name, outcome in best.items():
            alone.setdefault(name, []).append((x, outcome.usd_per_million))
    curves = [Curve("AFD, best of all", sorted(split))]
    return curves + [Curve(f"{name} alone", sorted(alone[name])) for name in sorted(alone)]


def draw_plan(demand: Demand, space: Space, best: Outcome, folder: Path, progress: Progress) -> list[Path]:
    """Draw all plots of a plan into `folder` as PNG and SVG.

    Raises:
        PlanError: matplotlib is missing, or the folder cannot be written to.
    """
    with drawing(6.4, 4.0) as (figure, axes):
        _lines(axes, context_curves(demand, space, progress))
        shown = [c for c in CONTEXTS if not demand.model.max_context or c <= demand.model.max_context]
        axes.set(xscale="log", yscale="log", xlabel="mean context, tokens", ylabel="USD for 1M tokens")
        axes.set_xticks(shown, [f"{c >> 10}K" for c in shown])
        _plain_log_y(axes)
        axes.set_title(f"{demand.model.name}: cost against context, {demand.tpot * 1e3:g} ms a token")
        axes.legend()
        written = save(figure, folder, "cost-against-context")
    with drawing(6.4, 4.0) as (figure, axes):
        _lines(axes, speed_curves(demand, space, progress))
        axes.set(xlabel="tokens a second and sequence", ylabel="USD for 1M tokens")
        axes.set_ylim(bottom=0)
        axes.set_title(
            f"{demand.model.name}: cost against speed, {demand.contexts.mean:,.0f} tokens of context"
        )
        axes.legend(loc="upper left")
        written += save(figure, folder, "pareto")
    with drawing(6.4, 4.2) as (figure, axes):
        _rooflines(axes, demand, best)
        written += save(figure, folder, "roofline")
    return written


def _lines(axes: Any, curves: Sequence[Curve]) -> None:
    for i, curve in enumerate(curves):
        if not curve.points:
            continue
        xs, ys = zip(*curve.points, strict=True)
        first = i == 0
        axes.plot(
            xs,
            ys,
            color=COLOURS[4] if first else [c for c in COLOURS if c != COLOURS[4]][(i - 1) % 8],
            marker=MARKERS[i % len(MARKERS)],
            linewidth=2.4 if first else 1.4,
            zorder=3 if first else 2,
            label=curve.name,
        )


def _plain_log_y(axes: Any) -> None:
    """Ticks at 1, 2 and 5, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


@dataclass(frozen=True)
class _Load:
    """A kernel's place under a roof."""

    name: str
    card: Hardware
    kind: str
    flops: float
    moved: float

    @property
    def intensity(self) -> float:
        return self.flops / self.moved

    @property
    def attained(self) -> float:
        return min(self.card.peak(self.kind), self.intensity * self.card.memory_bandwidth)


def _loads(demand: Demand, outcome: Outcome) -> list[_Load]:
    """The kernels of a step of one micro-batch on one card."""
    model, precision, deployment = demand.model, demand.precision, outcome.deployment
    work = token_work(model, demand.contexts.mean, Counting.EXACT, precision)
    times = roofline_times(demand, deployment)
    layer = max(range(len(model.layers)), key=lambda i: times.ffn(i, 1))
    ffn = model.layers[layer].ffn
    tokens = deployment.merged(outcome.sequences) / deployment.topology.replicas
    weights = 3 * model.hidden * ffn.touched_intermediate(tokens) * BYTES[precision.ffn_weights]
    sequences = outcome.sequences
    projections = model.attention_parameters * BYTES[precision.attention_weights]
    return [
        _Load("attention's core", deployment.attention, precision.kv, work.core_flops, work.kv_bytes),
        _Load(
            "projections",
            deployment.attention,
            precision.attention_weights,
            work.linear_flops * sequences,
            projections,
        ),
        _Load("FFN", deployment.ffn, precision.ffn_weights, tokens * ffn_flops(ffn, model.hidden), weights),
    ]


def _rooflines(axes: Any, demand: Demand, best: Outcome) -> None:
    loads = _loads(demand, best)
    roofs = dict.fromkeys((load.card.name, load.kind) for load in loads)
    cards = {load.card.name: load.card for load in loads}
    low = min(4.0, *(load.intensity / 2 for load in loads))
    high = max(4096.0, *(2 * load.intensity for load in loads))
    for i, (name, kind) in enumerate(roofs):
        card, peak = cards[name], cards[name].peak(kind)
        corner = peak / card.memory_bandwidth
        axes.plot(
            [low, corner, high],
            [low * card.memory_bandwidth / 1e12, peak / 1e12, peak / 1e12],
            color="#9aa3ad",
            linewidth=1.2,
            linestyle=("-", "--", ":")[i % 3],
            zorder=1,
        )
        axes.annotate(
            f"{name}, {kind}: {peak / 1e12:,.0f} TFLOP/s, {card.memory_bandwidth / 1e12:g} TB/s",
            (high, peak / 1e12),
            xytext=(-2, 4),
            textcoords="offset points",
            ha="right",
            fontsize=7.5,
            color="#6b7280",
        )
    for i, load in enumerate(loads):
        colour = COLOURS[(4, 1, 0)[i]]
        axes.scatter(load.intensity, load.attained / 1e12, s=55, color=colour, marker=MARKERS[i], zorder=3)
        axes.annotate(
            f"{load.name} on {load.card.name}",
            (load.intensity, load.attained / 1e12),
            xytext=(8, (8, -14, -14)[i]) if i else (-8, 9),
            textcoords="offset points",
            ha="left" if i else "right",
            color=colour,
            fontweight="bold",
            fontsize=8,
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(low, high),
        xlabel="FLOP for each byte read",
        ylabel="TFLOP/s of one card",
    )
    axes.set_xticks([4, 16, 64, 256, 1024, 4096], ["4", "16", "64", "256", "1,024", "4,096"])
    _plain_log_y(axes)
    axes.spines["left"].set_color(INK)
    axes.set_title(f"{demand.model.name}: where the cheapest deployment works")

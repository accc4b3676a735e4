"""A run as a reader sees it: how fast, where the time goes, what limits it, what went wrong."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from step3.plan.pipeline import Step
from step3.plan.simulate.loss import Loss
from step3.plan.simulate.requests import ClosedLoop, OpenLoop
from step3.plan.simulate.result import Result, Spread
from step3.plan.simulate.scenario import Scenario

_BLOCKS = "▁▂▃▄▅▆▇█"
_BAR = 30
_SPARKS = 36


def render(title: str, scenario: Scenario, result: Result, closed: Step | None) -> RenderableType:
    """Everything about one run.

    Args:
        title: model and cards.
        scenario: what was simulated.
        result: what came of it.
        closed: the planner's closed form for comparison; None leaves it out.
    """
    return Group(
        _block(title, *_setting(scenario, result)),
        _block("Latency, ms", _latencies(result)),
        _block("Throughput", *_throughput(result, scenario, closed)),
        _block("Where a token's time goes", _spent(result)),
        _block("Busy", _busy(result)),
        _block("Over time", _over_time(result)),
        _block("Requests", *_requests(result)),
        _block("Limited by", Text(result.limit.words)),
    )


def as_json(scenario: Scenario, result: Result, closed: Step | None, cost: Loss | None) -> dict[str, Any]:
    """The result, what was simulated, and what to compare it with; seconds, tokens and requests."""
    return {
        "topology": str(scenario.topology),
        "lanes": scenario.lanes,
        "sequences_per_card_and_lane": scenario.seats,
        "seed": scenario.seed,
        "warmup": scenario.warmup,
        "closed_form": closed
        and {"tpot": closed.seconds / scenario.tokens_per_step, "binding": closed.binding},
        **result.as_json(),
        "failures": None if cost is None else asdict(cost),
    }


def _setting(scenario: Scenario, result: Result) -> list[RenderableType]:
    cards = scenario.cards
    attention = f"{cards.attention} card{'s' * (cards.attention > 1)} an attention instance"
    ffn = "" if scenario.topology.is_monolith else f", {cards.ffn} an FFN instance"
    pods = f"{scenario.pods:,} × " if scenario.pods > 1 else ""
    all_attention = scenario.topology.attention * cards.attention
    lines = [
        f"{pods}{scenario.topology}: {attention}{ffn}; {result.cards:,} cards in all",
        f"{scenario.lanes} lane{'s' * (scenario.lanes > 1)} of up to {scenario.seats:,} sequences a card, "
        f"{scenario.seats * all_attention:,} over all attention cards",
        f"requests: {_arrivals(scenario)}; prompts of {scenario.lengths.prompt.mean:,.0f} tokens and outputs "
        f"of {scenario.lengths.output.mean:,.0f} on average",
        f"prompts are computed here, {scenario.chunk:,} tokens a card and step"
        if scenario.prefills
        else "prompts are computed elsewhere and come with their cache",
    ]
    if scenario.host is not None:
        how = "each instance bound to one" if scenario.host.is_bound else "over which instances wander"
        lines.append(f"all on one host of {scenario.host.cores:,} cores, {how}")
    if scenario.copies > 1:
        lines.append(
            f"{scenario.simulated} of {scenario.topology.attention:,} attention instances are simulated, "
            f"each standing for {scenario.copies:,} that do the same at the same time"
        )
    return [Text(line) for line in lines]


def _arrivals(scenario: Scenario) -> str:
    arrivals = scenario.arrivals
    if isinstance(arrivals, ClosedLoop):
        return f"{arrivals.concurrency:,} always under way"
    if isinstance(arrivals, OpenLoop):
        return f"{arrivals.rate:,g} a second, {'at random' if arrivals.random else 'evenly'}"
    return f"as in {arrivals.path.name}"


def _latencies(result: Result) -> RenderableType:
    table = _table()
    for header in ("", "mean", "p50", "p90", "p99", "most"):
        table.add_column(header, justify="right" if header else "left", no_wrap=True)
    table.add_column("of", no_wrap=True)
    rows: tuple[tuple[str, Spread, str], ...] = (
        ("TPOT", result.token, "tokens"),
        ("TPOT of a request", result.request_mean, "requests"),
        ("TTFT", result.first_token, "requests"),
        ("whole request", result.whole, "requests"),
    )
    for name, spread, unit in rows:
        if not spread.count:
            table.add_row(name, *["–"] * 5, Text(f"no {unit}", style="dim"))
            continue
        values = (spread.mean, spread.p50, spread.p90, spread.p99, spread.greatest)
        table.add_row(name, *map(_ms, values), f"{_count(spread.count)} {unit}")
    return table


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds * 1e3:,.0f}" if seconds >= 1 else f"{seconds * 1e3:,.2f}"


def _count(number: float) -> str:
    return f"{number / 1e6:,.2f} M" if number >= 1e6 else f"{number:,.0f}"


def _throughput(result: Result, scenario: Scenario, closed: Step | None) -> list[RenderableType]:
    lines = [
        f"{result.tokens_per_second:,.0f} tokens a second, {result.tgs:,.0f} for each card (TGS), over "
        f"{result.seconds:,.1f} s"
    ]
    if result.usd_per_million is not None:
        lines.append(f"{result.usd_per_million:.3f} USD for 1M tokens")
    if closed is not None and result.token.mean is not None:
        expected = closed.seconds / scenario.tokens_per_step
        lines.append(
            f"closed form (step3 plan) with every seat taken: {expected * 1e3:.2f} ms a token; simulated "
            f"{result.token.mean / expected - 1:+.1%}"
        )
    return [Text(line) for line in lines]


def _spent(result: Result) -> RenderableType:
    spent = result.per_token
    parts = {
        "attention": spent.attention,
        "waiting for attention": spent.wait_attention,
        "wire out": spent.out,
        "waiting for the FFN": spent.wait_ffn,
        "FFN": spent.ffn,
        "wire back": spent.back,
    }
    whole = sum(parts.values())
    table = _table()
    for header in ("", "ms", "", ""):
        table.add_column(header, justify="right" if header else "left", no_wrap=True)
    for name, seconds in parts.items():
        part = seconds / whole if whole else 0.0
        table.add_row(name, f"{seconds * 1e3:.2f}", f"{part:4.0%}", Text(_bar(part), style="cyan"))
    table.show_header = False
    return table


def _busy(result: Result) -> RenderableType:
    busy = result.busy
    names = {"attention" if busy.ffn is not None else "card": busy.attention, "wire out": busy.out}
    if busy.ffn is not None:
        names["FFN"] = busy.ffn
    names["wire back"] = busy.back
    if busy.core is not None:
        names["busiest core"] = busy.core
    table = _table()
    for _ in range(4):
        table.add_column(no_wrap=True)
    for name, part in names.items():
        idle = f"{1 - part:.0%} bubbles"
        table.add_row(name, f"{part:4.0%}", Text(_bar(part), style="green"), Text(idle, style="dim"))
    table.show_header = False
    if busy.ffn is not None:
        table.add_row("merging", "", f"{result.merging:.2f} calls of lanes in one call of the FFN", "")
    return table


def _over_time(result: Result) -> RenderableType:
    table = _table()
    for _ in range(3):
        table.add_column(no_wrap=True)
    series = (
        ("tokens a second", result.output_rate, 1.0),
        ("cache taken, %", result.cache_share, 100.0),
        ("requests waiting", result.queue, 1.0),
    )
    for name, points, scale in series:
        if points:
            values = [value * scale for _, value in points]
            span = f"{min(values):,.0f} to {max(values):,.0f}"
            table.add_row(name, Text(spark(values), style="cyan"), span)
    table.show_header = False
    return table


def _requests(result: Result) -> list[RenderableType]:
    lines = [
        f"{result.arrived:,} came: {result.finished:,} finished, {result.left_running:,} running and "
        f"{result.left_waiting:,} waiting at the end, {result.rejected:,} too long for a card's cache",
        f"on average {result.running:,.0f} running, {result.in_system:,.0f} under way",
    ]
    if result.preempted:
        lines.append(f"{result.preempted:,} times a request gave up its cache for lack of room")
    return [Text(line) for line in lines]


def render_loss(loss: Loss, restart: float, detection: float) -> RenderableType:
    """What the failures cost."""
    lines = [
        f"{loss.tokens:,.0f} tokens fewer than without: {loss.seconds:,.2f} s of output "
        f"(detected after {detection:g} s, back after {restart:g} s)",
        f"longest wait of a running request for its next token: {_ms(loss.longest_gap)} ms, otherwise "
        f"{_ms(loss.longest_gap_before)} ms",
    ]
    if loss.recomputed_tokens:
        lines.append(f"{loss.recomputed_tokens:,.0f} tokens of cache lost and computed anew")
    return _block("What the failures cost", *[Text(line) for line in lines])


def spark(values: Sequence[float], width: int = _SPARKS) -> str:
    """Values as a line of blocks, from zero to the greatest."""
    size = max(len(values) / width, 1.0)
    groups = [
        values[int(i * size) : max(int((i + 1) * size), int(i * size) + 1)]
        for i in range(min(width, len(values)))
    ]
    means = [sum(group) / len(group) for group in groups if group]
    most = max(means, default=0.0)
    if most <= 0:
        return _BLOCKS[0] * len(means)
    return "".join(_BLOCKS[min(int(value / most * 8), 7)] for value in means)


def _bar(part: float) -> str:
    return "█" * round(part * _BAR)


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def _block(title: str, *content: RenderableType) -> RenderableType:
    return Group(Text(title, style="bold cyan"), Padding(Group(*content), (0, 0, 1, 2)))

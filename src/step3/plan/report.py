"""A plan as a reader sees it: the deployments, why, what would change the answer."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from step3.plan.advice import Variation, Verdict, describe
from step3.plan.attention import Counting
from step3.plan.evaluate import ROUND_TRIP, Demand, Infeasible, Outcome
from step3.plan.hardware import ASSUMED, Hardware
from step3.plan.launch import launch_command, launch_notes
from step3.plan.search import Space
from step3.plan.shape import token_work
from step3.plan.summary import obstacles, stages, theory


def heading(demand: Demand, space: Space) -> RenderableType:
    """What is planned for."""
    model, precision = demand.model, demand.precision
    work = token_work(model, demand.contexts.mean, Counting.EXACT, precision)
    weights = dict.fromkeys((precision.attention_weights, precision.ffn_weights))
    drafts, ideal = demand.speculation, theory(demand, space)
    lines = [
        f"{_scaled(model.text_parameters, 'B')} parameters, {_scaled(model.active_parameters, 'B')} active",
        f"weights {'/'.join(weights)}, cache {precision.kv}, wire {precision.wire_out} out and "
        f"{precision.wire_back} back",
        f"context {demand.contexts.mean:,.0f}: {_scaled(work.kv_bytes, 'GB')} of cache a token, "
        f"{work.intensity:.0f} FLOP/byte",
        f"FLOP a token: core {_scaled(work.core_flops, 'G')}, projections {_scaled(work.linear_flops, 'G')}, "
        f"FFN {_scaled(work.ffn_flops, 'G')}, head {_scaled(work.head_flops, 'G')}",
        f"an endless batch on {ideal.attention} + {ideal.ffn}, USD for 1M tokens: {ideal.paper:.4f} by the "
        f"paper's rules, {ideal.exact:.4f} exact",
        f"target {demand.tpot * 1e3:g} ms a token"
        + (
            f"; drafts a step: {drafts.drafts}, each accepted {drafts.acceptance:.0%}"
            if drafts.drafts
            else ""
        ),
    ]
    return _block(model.name, *lines)


def _scaled(value: float, unit: str) -> str:
    """A number in 1e9 (`unit` as given), or in 1e6 or 1e3 where that reads better."""
    for factor, prefix in ((1e9, unit[0]), (1e6, "M"), (1e3, "k")):
        if value >= 0.995 * factor:
            digits = f"{value / factor:,.3g}" if value < 1000 * factor else f"{value / factor:,.0f}"
            return f"{digits} {prefix}{unit[1:]}"
    return f"{value:,.0f} {unit[1:]}".rstrip()


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def _block(title: str, *content: RenderableType) -> RenderableType:
    return Group(Text(title, style="bold cyan"), Padding(Group(*content), (0, 0, 1, 2)))


def deployments_table(outcomes: Sequence[Outcome]) -> RenderableType:
    """Ranked deployments."""
    table = _table()
    for header in ("", "topology", "attention", "FFN"):
        table.add_column(header, no_wrap=header in ("", "topology"))
    for header in ("µb", "batch", "ms", "TGS", "USD/1M"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("bound by", min_width=12)
    for place, outcome in enumerate(outcomes, 1):
        deployment = outcome.deployment
        whole = deployment.is_monolith
        table.add_row(
            str(place),
            str(deployment.topology),
            f"{deployment.all_attention_cards} {deployment.attention.name}",
            "–" if whole else f"{deployment.all_ffn_cards} {deployment.ffn.name}",
            str(outcome.lanes),
            f"{outcome.batch:,}",
            f"{outcome.tpot * 1e3:.1f}",
            f"{outcome.tgs:,.0f}",
            f"{outcome.usd_per_million:.4f}",
            outcome.reason,
            style="bold" if place == 1 else "",
        )
    return _block("Cheapest deployment of each choice of cards", table)


def details(demand: Demand, outcome: Outcome) -> RenderableType:
    """One deployment: stages and slack, memory, network."""
    deployment, memory = outcome.deployment, outcome.memory
    table = _table()
    table.add_column("stage")
    for header in ("µs/layer", "ms/step", "slack"):
        table.add_column(header, justify="right")
    layers = len(outcome.times.layers)
    parts = stages(demand, outcome)
    for stage in parts:
        per_layer = f"{stage.seconds / layers * 1e6:,.0f}"
        table.add_row(stage.name, per_layer, f"{stage.seconds * 1e3:.2f}", f"{stage.slack:.0%}")
    lines = [f"bound by: {outcome.reason}"]
    if outcome.reason == ROUND_TRIP:
        lines[0] += "; every stage has slack that one more micro-batch in flight could use"
    if any(stage.slack < 0 for stage in parts):
        lines.append("A stage may outlast its share of the target while the round trip keeps it.")
    caches = memory.sequence * outcome.sequences * outcome.lanes
    lines += [
        f"{outcome.lanes} × {outcome.sequences} sequences on each of {deployment.all_attention_cards} "
        f"attention cards = {outcome.batch:,}",
        f"{deployment.attention.name}: weights {_gib(memory.attention_weights)} + caches {_gib(caches)} of "
        f"{_gib(memory.attention_room)}; {_network(outcome.attention_gbit_s, deployment.attention)}",
    ]
    if not deployment.is_monolith:
        lines.append(
            f"{deployment.ffn.name}: weights {_gib(memory.ffn_weights)} of {_gib(memory.ffn_room)}; "
            f"{_network(outcome.ffn_gbit_s, deployment.ffn)}"
        )
    return _block(f"The cheapest: {describe(deployment)}", table, "", *lines)


def _gib(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB"


def _network(gbit_s: float, card: Hardware) -> str:
    return f"network {gbit_s:,.0f} of 2 × {card.network_bandwidth * 8e-9:,.0f} Gbit/s"


def verdict_text(verdict: Verdict) -> RenderableType:
    """AFD or not, and why."""
    return Group(
        Text(verdict.headline, style="bold green" if verdict.use_afd else "bold yellow"),
        Padding("\n".join(f"- {reason}" for reason in verdict.reasons), (0, 0, 1, 2)),
    )


def infeasible_table(infeasible: Sequence[Infeasible]) -> RenderableType:
    """What cannot serve the demand, and why."""
    table = _table()
    table.add_column("lacking", no_wrap=True)
    table.add_column("tried", justify="right")
    table.add_column("closest", no_wrap=True)
    table.add_column("why not")
    for obstacle in obstacles(infeasible):
        lacking = f"{obstacle.lack} of {obstacle.card}" if obstacle.card else obstacle.lack
        deployment = obstacle.closest.deployment
        closest = (
            f"{deployment.cards} {deployment.attention.name}"
            if deployment.is_monolith
            else str(deployment.topology)
        )
        table.add_row(lacking, str(obstacle.count), closest, obstacle.closest.reason)
    return _block("Deployments that cannot serve this", table)


def sensitivity_table(first: Outcome, variations: Sequence[Variation]) -> RenderableType:
    """How the answer moves."""
    table = _table()
    table.add_column("if", no_wrap=True)
    table.add_column("it costs", justify="right")
    table.add_column("change", justify="right")
    table.add_column("then the cheapest is")
    for variation in variations:
        cost = variation.usd_per_million
        change = "cannot" if cost is None else _change(cost / first.usd_per_million - 1)
        table.add_row(
            variation.change, "–" if cost is None else f"{cost:.4f}", change, _then(first, variation)
        )
    return _block("What would change the answer", table)


def _change(share: float) -> str:
    return f"{share:+.0%}" if round(share, 2) else "none"


def _then(first: Outcome, variation: Variation) -> str:
    if variation.best is None:
        return "nothing that was tried"
    name = describe(variation.best.deployment)
    if name == describe(first.deployment) and variation.best.lanes == first.lanes:
        return "the same"
    return f"{name}, {variation.best.usd_per_million:.4f}"


def launch_text(outcome: Outcome, checkpoint: str) -> RenderableType:
    """How to start it."""
    return _block("Start it", Text(launch_command(outcome, checkpoint)), *launch_notes(outcome))


def price_note(cards: Sequence[Hardware]) -> str | None:
    """A warning where prices are nobody's."""
    assumed = [f"{card.name} {card.usd_per_hour:g}" for card in cards if card.price_source == ASSUMED]
    if not assumed:
        return None
    return f"Assumed prices, USD/h: {', '.join(assumed)}. Give yours with --price NAME=USD."

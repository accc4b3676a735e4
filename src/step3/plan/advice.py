"""Whether attention and FFN should be taken apart at all, and how firm the answer is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from step3.plan.deployment import Deployment
from step3.plan.efficiency import Efficiencies, Efficiency
from step3.plan.evaluate import Demand, Outcome, largest_batch
from step3.plan.hardware import Hardware
from step3.plan.search import Ranking

WORTH_IT = 0.02
"""A saving below this share is within what the model of the hardware can tell."""

CONTENDERS = 60
"""Deployments, the best of each kind, that a changed assumption is tried on."""


@dataclass(frozen=True)
class Verdict:
    """AFD or not."""

    use_afd: bool
    headline: str
    reasons: list[str]


def verdict(ranking: Ranking) -> Verdict:
    """Compare the cheapest deployment of each kind and say when the other is the better one."""
    afd, whole = ranking.afd[:1], ranking.monoliths[:1]
    if not afd and not whole:
        return Verdict(False, "Nothing within these bounds meets the demand.", [])
    if not afd:
        why = [entry.reason for entry in ranking.infeasible if not entry.deployment.is_monolith]
        return Verdict(
            False, "Do not use AFD: no split deployment meets the demand.", list(dict.fromkeys(why))[:3]
        )
    if not whole:
        why = [entry.reason for entry in ranking.infeasible if entry.deployment.is_monolith]
        return Verdict(
            True, "Use AFD: no deployment without it meets the demand.", list(dict.fromkeys(why))[:3]
        )
    return _compare(afd[0], whole[0], ranking)


def _compare(split: Outcome, whole: Outcome, ranking: Ranking) -> Verdict:
    saving = 1 - split.usd_per_million / whole.usd_per_million
    pair = (
        f"${split.usd_per_million:.3f} for {describe(split.deployment)} against "
        f"${whole.usd_per_million:.3f} for {describe(whole.deployment)}"
    )
    if saving > WORTH_IT:
        headline = f"Use AFD: it saves {saving:.0%} ({pair})."
    elif saving >= -WORTH_IT:
        headline = f"AFD makes no difference here ({pair}): take what is simpler to run."
    else:
        headline = f"Do not use AFD: it costs {-saving:.0%} more ({pair})."
    return Verdict(saving > WORTH_IT, headline, _reasons(split, whole, ranking))


def _reasons(split: Outcome, whole: Outcome, ranking: Ranking) -> list[str]:
    reasons = []
    attention, ffn = split.deployment.attention.name, split.deployment.ffn.name
    if attention == ffn:
        reasons.append(
            f"Both sides of the best split want the same card, {ffn}: mixing prices gains nothing."
        )
    elif split.usd_per_million < whole.usd_per_million:
        reasons.append(
            f"Attention is cheapest on {attention} and the FFN on {ffn}: only AFD gives each its own."
        )
    for side in ("attention", "ffn"):
        idle = 1 - split.step.busy[side]
        if idle > 0.15:
            cards = "attention" if side == "attention" else "FFN"
            reasons.append(
                f"In the best split the {cards} cards idle {idle:.0%} of the time, bound by {split.reason}."
            )
    smallest = min(ranking.monoliths, key=lambda outcome: outcome.deployment.cards)
    least = min(ranking.afd, key=lambda outcome: outcome.deployment.cards)
    close = split.usd_per_million < (1 + WORTH_IT) * whole.usd_per_million
    if close and smallest.deployment.cards < least.deployment.cards:
        pays_from = least.deployment.usd_per_second * 1e6 / smallest.usd_per_million
        reasons.append(
            f"A split needs {least.deployment.cards} cards ({least.deployment.topology}), without AFD "
            f"{smallest.deployment.cards} do: below about {_two_digits(pays_from)} tokens/s of traffic the "
            "split's cards would idle, and AFD is the dearer choice."
        )
    return reasons


def _two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):,.0f}"


def describe(deployment: Deployment) -> str:
    """`2A1F (16 H20 + 8 H800)`."""
    if deployment.is_monolith:
        return f"{deployment.topology} ({deployment.cards} {deployment.attention.name})"
    attention = f"{deployment.all_attention_cards} {deployment.attention.name}"
    return f"{deployment.topology} ({attention} + {deployment.all_ffn_cards} {deployment.ffn.name})"


@dataclass(frozen=True)
class Variation:
    """The answer under one changed assumption."""

    change: str
    usd_per_million: float | None
    """Of the first choice; None if it cannot serve this."""
    best: Outcome | None
    """What would then be the first choice."""


def sensitivity(demand: Demand, ranking: Ranking) -> list[Variation]:
    """How cost and choice move with context, target, prices and efficiencies.

    A changed assumption is tried on the first choice and its strongest contenders.
    """
    first = ranking.best()
    contenders = _contenders(ranking)
    cards = {first.deployment.attention.name, first.deployment.ffn.name}
    variations = []
    for factor in (0.5, 2.0, 4.0):
        contexts = demand.contexts.scaled(factor)
        longest = demand.model.max_context
        if longest is None or contexts.mean <= longest:
            changed = replace(demand, contexts=contexts)
            variations.append(_vary(f"context × {factor:g}", changed, first, contenders, None))
    for factor in (0.5, 2.0):
        changed = replace(demand, tpot=demand.tpot * factor)
        variations.append(_vary(f"TPOT target × {factor:g}", changed, first, contenders, None))
    for name in sorted(cards):
        for factor in (0.75, 1.25):
            prices = _Change(name, price=factor)
            variations.append(_vary(f"price of {name} × {factor:g}", demand, first, contenders, prices))
    for family in ("attention", "linear", "ffn", "network"):
        change = _Change(None, family=family, share=0.7)
        variations.append(_vary(f"efficiency of {family} × 0.7", demand, first, contenders, change))
    return variations


def _contenders(ranking: Ranking) -> list[Outcome]:
    """The cheapest overall, and the cheapest of each pair of cards."""
    best_of_pair: dict[tuple[str, str, bool], Outcome] = {}
    for outcome in ranking.feasible:
        deployment = outcome.deployment
        best_of_pair.setdefault(
            (deployment.attention.name, deployment.ffn.name, deployment.is_monolith), outcome
        )
    chosen = [*ranking.feasible[:CONTENDERS], *best_of_pair.values()]
    return list({id(outcome): outcome for outcome in chosen}.values())


@dataclass(frozen=True)
class _Change:
    """A change of one card (or of all) that leaves the rest alone."""

    card: str | None
    price: float = 1.0
    family: str | None = None
    share: float = 1.0

    def of(self, hardware: Hardware) -> Hardware:
        if self.card is not None and hardware.name != self.card:
            return hardware
        efficiencies = hardware.efficiencies
        if self.family is not None:
            efficiencies = _lowered(efficiencies, self.family, self.share)
        return replace(hardware, usd_per_hour=hardware.usd_per_hour * self.price, efficiencies=efficiencies)


def _lowered(efficiencies: Efficiencies, family: str, share: float) -> Efficiencies:
    value = getattr(efficiencies, family)
    lower: Any = value * share if isinstance(value, float) else None
    if lower is None:
        lower = Efficiency(value.compute * share, value.memory * share)
    return replace(efficiencies, **{family: lower})


def _vary(
    change: str, demand: Demand, first: Outcome, contenders: Sequence[Outcome], cards: _Change | None
) -> Variation:
    def again(outcome: Outcome) -> Outcome | None:
        deployment = outcome.deployment
        if cards is not None:
            deployment = replace(
                deployment, attention=cards.of(deployment.attention), ffn=cards.of(deployment.ffn)
            )
        result = largest_batch(demand, deployment, outcome.lanes)
        return result if isinstance(result, Outcome) else None

    mine = again(first)
    results = [result for result in map(again, contenders) if result is not None]
    best = min(results, key=lambda outcome: outcome.usd_per_million, default=None)
    return Variation(change, mine.usd_per_million if mine else None, best)

"""What a plan comes down to: stages against their budgets, obstacles, and the bound that theory sets."""

from collections.abc import Sequence
from dataclasses import dataclass

from step3.plan.attention import Counting
from step3.plan.cost import cheapest_pair, token_cost
from step3.plan.evaluate import Demand, Infeasible, Outcome
from step3.plan.search import Ranking, Space


@dataclass(frozen=True)
class Stage:
    """One stage of a step."""

    name: str
    seconds: float
    """Of one micro-batch's step."""
    slack: float
    """Share of the stage's budget that is left; negative where the step's other stages leave it room."""


def stages(demand: Demand, outcome: Outcome) -> list[Stage]:
    """The stages of the pipeline against their budgets, the target over the micro-batches in flight.

    With three micro-batches both ways of the wire are one stage, as in the paper; with more, two.
    """
    times = outcome.times
    named = {"attention": times.attention, "out": times.out, "FFN": times.ffn, "back": times.back}
    if outcome.deployment.is_monolith:
        named = {"attention + FFN": times.attention + times.ffn, "wire": times.out + times.back}
    elif outcome.lanes == 3:
        named = {"attention": times.attention, "FFN": times.ffn, "wire": times.out + times.back}
    budget = demand.tpot * outcome.tokens_per_step / outcome.lanes
    return [Stage(name, seconds, 1 - seconds / budget) for name, seconds in named.items()]


def best_of_each_choice(ranking: Ranking) -> list[Outcome]:
    """The cheapest deployment of each choice of cards, cheapest first."""
    chosen: dict[tuple[str, str, bool], Outcome] = {}
    for outcome in ranking.feasible:
        deployment = outcome.deployment
        chosen.setdefault((deployment.attention.name, deployment.ffn.name, deployment.is_monolith), outcome)
    return list(chosen.values())


@dataclass(frozen=True)
class Obstacle:
    """What keeps a group of deployments from serving."""

    lack: str
    card: str
    count: int
    closest: Infeasible
    """The one that lacks least."""


def obstacles(infeasible: Sequence[Infeasible]) -> list[Obstacle]:
    """Infeasible deployments by what they lack and on which card, most frequent first."""
    grouped: dict[tuple[str, str], list[Infeasible]] = {}
    for entry in infeasible:
        deployment = entry.deployment
        card = deployment.ffn if entry.lack == "FFN memory" else deployment.attention
        where = card.name if "memory" in entry.lack else ""
        grouped.setdefault((entry.lack, where), []).append(entry)
    found = [
        Obstacle(lack, card, len(entries), min(entries, key=lambda entry: entry.excess))
        for (lack, card), entries in grouped.items()
    ]
    return sorted(found, key=lambda obstacle: -obstacle.count)


@dataclass(frozen=True)
class Theory:
    """USD for a million tokens of an endless batch at full efficiency, each side on its cheapest card."""

    attention: str
    ffn: str
    paper: float
    """By the paper's rules."""
    exact: float


def theory(demand: Demand, space: Space) -> Theory:
    """The paper's rules and the exact ones, on the pair of cards that is cheapest by the paper's."""
    model, context, precision = demand.model, demand.contexts.mean, demand.precision
    attention, ffn = cheapest_pair(model, context, space.attention, space.ffn, precision=precision)
    paper, exact = (
        token_cost(model, context, attention, ffn, rules, precision, speculation=demand.speculation).total
        * 1e6
        for rules in (Counting.PAPER, Counting.EXACT)
    )
    return Theory(attention.name, ffn.name, paper, exact)

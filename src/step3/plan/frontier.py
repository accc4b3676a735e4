"""The deployments that are the cheapest at some prices: what is left to compare when only prices change."""

from collections.abc import Sequence
from dataclasses import dataclass

from step3.plan.deployment import Deployment
from step3.plan.evaluate import Demand, Infeasible, Outcome, largest_batch
from step3.plan.search import Space, candidates

INSTANCES = (1, 2, 3, 4, 6, 8, 12, 16)
"""Counts of instances and of nodes that are tried: between them the cost hardly moves, and a search that
somebody waits for must be short."""


@dataclass(frozen=True)
class Frontier:
    """What serves a demand on one choice of cards or another.

    Attributes:
        outcomes: for each choice of cards those that no prices make dearer than all others.
        infeasible: deployments that cannot serve the demand.
        tried: all deployments.
    """

    outcomes: list[Outcome]
    infeasible: list[Infeasible]
    tried: int


def find_frontier(demand: Demand, space: Space) -> Frontier:
    """Fills the candidates and keeps those that can be the cheapest.

    A token costs `attention price × attention cards + FFN price × FFN cards` for a share of a second: a
    straight line in the prices. So of each choice of cards only the corners of a convex hull matter.
    """
    groups: dict[tuple[str, str, bool], list[Outcome]] = {}
    infeasible, tried = [], 0
    for deployment, lanes in candidates(demand.model, space):
        if not _is_tried(deployment):
            continue
        tried += 1
        result = largest_batch(demand, deployment, lanes)
        if isinstance(result, Infeasible):
            infeasible.append(result)
            continue
        choice = (deployment.attention.name, deployment.ffn.name, deployment.is_monolith)
        groups.setdefault(choice, []).append(result)
    outcomes = [outcome for group in groups.values() for outcome in _corners(group)]
    return Frontier(outcomes, infeasible, tried)


def _is_tried(deployment: Deployment) -> bool:
    topology = deployment.topology
    if not deployment.is_monolith:
        return topology.attention in INSTANCES and topology.ffn in INSTANCES
    nodes = deployment.attention_cards / deployment.attention.cards_per_node
    return nodes < 1 or nodes in INSTANCES


def card_seconds(outcome: Outcome) -> tuple[float, float]:
    """Seconds of an attention card and of an FFN card that a token takes."""
    deployment, tokens = outcome.deployment, outcome.tokens_per_second
    return deployment.all_attention_cards / tokens, deployment.all_ffn_cards / tokens


def _corners(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The corners of the lower left hull of the outcomes' card seconds."""
    best = min(outcomes, key=lambda one: (sum(card_seconds(one)), one.deployment.cards))
    if best.deployment.attention.name == best.deployment.ffn.name:
        # One price for both sides.
        return [best]
    hull: list[Outcome] = []
    for outcome in sorted(outcomes, key=lambda one: (*card_seconds(one), one.deployment.cards)):
        # What saves less than rounding errors do is no corner.
        if hull and card_seconds(outcome)[1] >= (1 - 1e-9) * card_seconds(hull[-1])[1]:
            continue
        while len(hull) > 1 and not _turns_left(hull[-2], hull[-1], outcome):
            hull.pop()
        hull.append(outcome)
    return hull


def _turns_left(first: Outcome, second: Outcome, third: Outcome) -> bool:
    (ax, ay), (bx, by), (cx, cy) = map(card_seconds, (first, second, third))
    return (bx - ax) * (cy - ay) - (by - ay) * (cx - ax) > 0

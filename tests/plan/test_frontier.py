from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from step3.plan.evaluate import Demand, Outcome, largest_batch
from step3.plan.frontier import INSTANCES, Frontier, find_frontier
from step3.plan.hardware import HardwareCatalogue
from step3.plan.models import find_model
from step3.plan.search import Space, candidates
from step3.plan.workload import Contexts

CARDS = HardwareCatalogue().choose("H800,H20")
MODEL = find_model("Step-3")
DEMAND = Demand(MODEL, MODEL.precision, Contexts.fixed(8192), 0.05)
SPACE = Space(CARDS, CARDS, most_attention=4, most_ffn=3)


@pytest.fixture(scope="module")
def everything() -> list[Outcome]:
    filled = [
        largest_batch(DEMAND, deployment, lanes)
        for deployment, lanes in candidates(MODEL, SPACE)
        if not deployment.is_monolith
        or deployment.attention_cards / 8 in INSTANCES
        or deployment.attention_cards < 8
    ]
    return [outcome for outcome in filled if isinstance(outcome, Outcome)]


@pytest.fixture(scope="module")
def frontier() -> Frontier:
    return find_frontier(DEMAND, SPACE)


def cost(outcome: Outcome, prices: dict[str, float]) -> float:
    deployment = outcome.deployment
    priced = replace(
        deployment,
        attention=replace(deployment.attention, usd_per_hour=prices[deployment.attention.name]),
        ffn=replace(deployment.ffn, usd_per_hour=prices[deployment.ffn.name]),
    )
    return priced.usd_per_second / outcome.tokens_per_second


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 20), st.floats(0.01, 20))
def test_whatever_the_prices_the_cheapest_is_on_the_frontier(
    everything: list[Outcome], frontier: Frontier, first: float, second: float
) -> None:
    prices = {"H800": first, "H20": second}
    best = min(cost(outcome, prices) for outcome in everything)
    assert min(cost(outcome, prices) for outcome in frontier.outcomes) == pytest.approx(best, rel=1e-8)


def test_the_frontier_is_small_and_counts_all_that_was_tried(
    everything: list[Outcome], frontier: Frontier
) -> None:
    assert frontier.tried >= len(everything) + len(frontier.infeasible)
    assert len(frontier.outcomes) < len(everything) / 4

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_strategies import cards, models

from step3.plan.errors import PlanError
from step3.plan.evaluate import Demand, Outcome, at_batch, largest_batch
from step3.plan.hardware import Hardware, HardwareCatalogue
from step3.plan.models import find_model
from step3.plan.search import Ranking, Space, candidates, parse_lanes, search
from step3.plan.shape import ModelShape
from step3.plan.topology import TopologyError
from step3.plan.workload import Contexts

CATALOGUE = HardwareCatalogue()
H800, H20 = CATALOGUE["H800"], CATALOGUE["H20"]
STEP3 = find_model("Step-3")


def demand(model: ModelShape = STEP3, context: float = 8192, tpot: float = 0.05) -> Demand:
    return Demand(model, model.precision, Contexts.fixed(context), tpot)


def small(attention: list[Hardware], ffn: list[Hardware]) -> Space:
    return Space(attention, ffn, most_attention=3, most_ffn=2)


def cheapest(ranking: Ranking) -> float:
    return ranking.feasible[0].usd_per_million if ranking.feasible else float("inf")


@pytest.fixture(scope="module")
def ranking() -> Ranking:
    return search(demand(), small([H800, H20], [H800, H20]))


def test_every_feasible_deployment_keeps_the_target_and_its_memory(ranking: Ranking) -> None:
    assert ranking.feasible
    for outcome in ranking.feasible:
        assert outcome.tpot <= 0.05
        assert outcome.sequences * outcome.lanes <= outcome.memory.sequences


def test_every_deployment_is_filled_to_its_limit(ranking: Ranking) -> None:
    for outcome in ranking.feasible:
        fuller = at_batch(demand(), outcome.deployment, outcome.lanes, outcome.sequences + 1)
        assert outcome.full or fuller.tpot > 0.05


def test_the_ranking_is_by_cost(ranking: Ranking) -> None:
    costs = [outcome.usd_per_million for outcome in ranking.feasible]
    assert costs == sorted(costs)
    assert ranking.best() is ranking.feasible[0]
    assert len(ranking.afd) + len(ranking.monoliths) == len(ranking.feasible)


def test_every_candidate_is_either_ranked_or_explained(ranking: Ranking) -> None:
    tried = list(candidates(STEP3, small([H800, H20], [H800, H20])))
    assert len(ranking.feasible) + len(ranking.infeasible) == len(tried)
    assert all(entry.reason and entry.excess > 1 for entry in ranking.infeasible)


def test_throughput_and_cost_agree(ranking: Ranking) -> None:
    outcome = ranking.best()
    tokens_per_hour = outcome.tgs * outcome.deployment.cards * 3600
    assert outcome.usd_per_million == pytest.approx(
        outcome.deployment.usd_per_second * 3600 / tokens_per_hour * 1e6
    )


def test_dense_models_are_cut_by_tensor() -> None:
    dense = find_model("Qwen3 32B")
    topologies = {d.topology for d, _ in candidates(dense, small([H800], [H800])) if not d.is_monolith}
    assert {topology.expert_parallel for topology in topologies} == {1}
    assert {topology.tensor_parallel for topology in topologies} == {1, 2}


def test_a_sharding_that_fits_no_count_is_an_error_not_an_empty_search() -> None:
    with pytest.raises(TopologyError, match="how to cut"):
        list(candidates(STEP3, replace(small([H800], [H800]), sharding="pp2")))
    with pytest.raises(TopologyError, match="multiply"):
        list(candidates(STEP3, replace(small([H800], [H800]), sharding="ep4xtp4")))


def test_an_impossible_target_names_what_stands_against_it() -> None:
    with pytest.raises(PlanError, match=r"no deployment meets this demand; .* ms a token, not 0\.001"):
        search(demand(tpot=1e-6), small([H800], [H800])).best()


def test_a_model_too_large_for_the_cards_says_so() -> None:
    l4 = CATALOGUE["L4"]
    with pytest.raises(PlanError, match=r"FFN weights take .* GiB on each L4"):
        search(demand(), Space([l4], [l4], most_attention=1, most_ffn=1, most_cards=16)).best()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tpot": 0.0}, "TPOT target must be above 0"),
        ({"tpot": float("nan")}, "TPOT target must be above 0"),
        ({"imbalance": 0.5}, "imbalance"),
        ({"memory_share": 0.0}, "share of memory"),
        ({"contexts": Contexts.fixed(100_000)}, "takes at most 65,536 tokens"),
    ],
)
def test_a_demand_out_of_range_is_refused(changes: dict, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        replace(demand(), **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attention": []}, "at least one card"),
        ({"most_attention": 0}, "most attention must be from 1"),
        ({"most_cards": 0}, "most cards must be from 1"),
        ({"lanes": [0]}, "micro-batches in flight"),
        ({"ffn_cards": 0}, "cards of an instance"),
    ],
)
def test_a_space_out_of_range_is_refused(changes: dict, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        replace(small([H800], [H800]), **changes)


def test_micro_batches_are_read() -> None:
    assert parse_lanes("3,4") == [3, 4]
    with pytest.raises(PlanError, match="no list of micro-batches"):
        parse_lanes("three")


@settings(max_examples=25)
@given(models(), cards("a"), cards("b"), st.floats(100, 60_000))
def test_the_best_of_two_cards_is_never_dearer_than_the_best_of_one(
    model: ModelShape, a: Hardware, b: Hardware, context: float
) -> None:
    asked = demand(model, context, 0.2)
    mixed = cheapest(search(asked, small([a, b], [a, b])))
    assert mixed <= min(cheapest(search(asked, small([card], [card]))) for card in (a, b)) * (1 + 1e-12)


@settings(max_examples=25)
@given(models(), cards(), st.floats(100, 30_000), st.floats(1, 4))
def test_the_best_cost_never_falls_with_context(
    model: ModelShape, card: Hardware, context: float, factor: float
) -> None:
    near, far = (
        cheapest(search(demand(model, n, 0.2), small([card], [card]))) for n in (context, context * factor)
    )
    assert far >= near * (1 - 1e-9)


@settings(max_examples=25)
@given(models(), cards(), st.floats(1, 4))
def test_the_best_cost_never_falls_with_the_price_or_with_work(
    model: ModelShape, card: Hardware, factor: float
) -> None:
    base = cheapest(search(demand(model, 4096, 0.2), small([card], [card])))
    dearer = replace(card, usd_per_hour=card.usd_per_hour * factor)
    deeper = replace(model, layers=(*model.layers, model.layers[0]))
    assert cheapest(search(demand(model, 4096, 0.2), small([dearer], [dearer]))) >= base * (1 - 1e-9)
    assert cheapest(search(demand(deeper, 4096, 0.2), small([card], [card]))) >= base * (1 - 1e-9)


@settings(max_examples=40)
@given(models(), cards(), st.floats(0.01, 0.5), st.integers(1, 4))
def test_the_largest_batch_is_the_largest(model: ModelShape, card: Hardware, tpot: float, lanes: int) -> None:
    asked = demand(model, 4096, tpot)
    deployment = next(d for d, _ in candidates(model, small([card], [card])) if not d.is_monolith)
    found = largest_batch(asked, deployment, lanes)
    if isinstance(found, Outcome):
        assert found.tpot <= tpot
        assert found.full or at_batch(asked, deployment, lanes, found.sequences + 1).tpot > tpot
    else:
        assert found.lack in ("experts", "FFN memory", "memory", "time")

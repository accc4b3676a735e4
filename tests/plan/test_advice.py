import pytest

from step3.plan.advice import describe, sensitivity, verdict
from step3.plan.deployment import Deployment, monolith
from step3.plan.evaluate import Demand
from step3.plan.hardware import HardwareCatalogue
from step3.plan.models import find_model
from step3.plan.search import Ranking, Space, search
from step3.plan.topology import parse_topology
from step3.plan.workload import Contexts

CATALOGUE = HardwareCatalogue()
H800, H20 = CATALOGUE["H800"], CATALOGUE["H20"]


def planned(name: str, context: int = 8192) -> tuple[Demand, Ranking]:
    model = find_model(name)
    demand = Demand(model, model.precision, Contexts.fixed(context), 0.05)
    return demand, search(demand, Space([H800, H20], [H800, H20], most_attention=6, most_ffn=2))


@pytest.fixture(scope="module")
def step3() -> tuple[Demand, Ranking]:
    return planned("Step-3")


def test_afd_is_advised_where_it_is_cheaper_by_more_than_the_models_error(
    step3: tuple[Demand, Ranking],
) -> None:
    found = verdict(step3[1])
    assert found.use_afd
    assert found.headline.startswith("Use AFD: it saves")
    assert any("H20" in reason and "H800" in reason for reason in found.reasons)


def test_afd_is_not_advised_where_one_card_suits_both_sides() -> None:
    found = verdict(planned("DSv3", 16384)[1])
    assert not found.use_afd
    assert found.headline.startswith("Do not use AFD: it costs")


def test_a_close_call_says_so_and_from_which_traffic_on_a_split_pays() -> None:
    ranking = planned("Llama 3.1 8B")[1]
    found = verdict(ranking)
    assert not found.use_afd
    assert "makes no difference" in found.headline
    assert any("tokens/s of traffic" in reason for reason in found.reasons)


def test_when_only_one_kind_works_it_is_advised_with_the_others_reason(step3: tuple[Demand, Ranking]) -> None:
    ranking = step3[1]
    assert verdict(Ranking(ranking.afd, ranking.infeasible)).headline.startswith(
        "Use AFD: no deployment without"
    )
    assert verdict(Ranking(ranking.monoliths, ranking.infeasible)).headline.startswith(
        "Do not use AFD: no split"
    )
    assert verdict(Ranking()).headline.startswith("Nothing")


def test_every_assumption_is_varied_and_the_new_choice_is_never_dearer(step3: tuple[Demand, Ranking]) -> None:
    variations = sensitivity(*step3)
    changes = " ".join(variation.change for variation in variations)
    for word in ("context", "TPOT", "price of H20", "price of H800", "efficiency of attention", "network"):
        assert word in changes
    for variation in variations:
        if variation.usd_per_million is not None and variation.best is not None:
            assert variation.best.usd_per_million <= variation.usd_per_million


def test_a_higher_price_moves_the_cost_up_and_a_lower_one_down(step3: tuple[Demand, Ranking]) -> None:
    first = step3[1].best().usd_per_million
    costs = {variation.change: variation.usd_per_million for variation in sensitivity(*step3)}
    assert costs["price of H20 × 0.75"] < first < costs["price of H20 × 1.25"]  # type: ignore[operator]


def test_contexts_beyond_the_model_are_not_tried() -> None:
    changes = [variation.change for variation in sensitivity(*planned("Step-3", 32768))]
    assert "context × 2" in changes
    assert "context × 4" not in changes


def test_deployments_are_described_by_their_cards() -> None:
    assert describe(Deployment(parse_topology("2A1F"), H20, 8, H800, 4)) == "2A1F (16 H20 + 4 H800)"
    assert describe(monolith(H800, 4)) == "1A0F (4 H800)"

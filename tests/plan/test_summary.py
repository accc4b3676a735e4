import pytest

from step3.plan.evaluate import Demand
from step3.plan.hardware import HardwareCatalogue
from step3.plan.models import find_model
from step3.plan.search import Ranking, Space, search
from step3.plan.summary import best_of_each_choice, obstacles, stages
from step3.plan.workload import Contexts

CARDS = HardwareCatalogue().choose("H800,H20,910B")
STEP3 = find_model("Step-3")
DEMAND = Demand(STEP3, STEP3.precision, Contexts.fixed(8192), 0.05)


@pytest.fixture(scope="module")
def ranking() -> Ranking:
    return search(DEMAND, Space(CARDS, CARDS, most_attention=4, most_ffn=2))


def test_the_three_stages_are_held_against_a_third_of_the_target(ranking: Ranking) -> None:
    outcome = next(o for o in ranking.afd if o.lanes == 3)
    parts = {stage.name: stage for stage in stages(DEMAND, outcome)}
    assert list(parts) == ["attention", "FFN", "wire"]
    assert parts["FFN"].slack == pytest.approx(1 - outcome.times.ffn / (0.05 / 3))
    assert parts["wire"].seconds == outcome.times.out + outcome.times.back


def test_the_four_stages_are_held_against_a_quarter(ranking: Ranking) -> None:
    outcome = next(o for o in ranking.afd if o.lanes == 4)
    parts = {stage.name: stage for stage in stages(DEMAND, outcome)}
    assert list(parts) == ["attention", "out", "FFN", "back"]
    assert parts["out"].slack == pytest.approx(1 - outcome.times.out / (0.05 / 4))
    assert min(stage.slack for stage in parts.values()) >= -1e-9


def test_one_deployment_stands_for_each_choice_of_cards(ranking: Ranking) -> None:
    shown = best_of_each_choice(ranking)
    kinds = [(o.deployment.attention.name, o.deployment.ffn.name, o.deployment.is_monolith) for o in shown]
    assert len(set(kinds)) == len(kinds)
    assert shown[0] is ranking.feasible[0]


def test_obstacles_count_every_infeasible_deployment_and_name_the_closest(ranking: Ranking) -> None:
    found = obstacles(ranking.infeasible)
    assert sum(obstacle.count for obstacle in found) == len(ranking.infeasible)
    for obstacle in found:
        same = [entry for entry in ranking.infeasible if entry.lack == obstacle.lack]
        assert obstacle.closest in same

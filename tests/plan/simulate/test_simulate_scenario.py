from typing import Any

import pytest
from simulated import scenario

from step3.plan.simulate import Cards
from step3.plan.simulate.errors import SimulationError
from step3.plan.simulate.faults import Failure, Faults, Straggler
from step3.plan.simulate.requests import ClosedLoop, OpenLoop
from step3.plan.topology import parse_topology


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 0, "arrivals": ClosedLoop(1)}, "lanes must be from 1 to 64, not 0"),
        ({"seats": 0, "arrivals": ClosedLoop(1)}, "seats must be from 1"),
        ({"chunk": 0}, "chunk must be from 1"),
        ({"jitter": -0.1}, "jitter must be from 0 to 10"),
        ({"jitter": float("nan")}, "jitter must be from 0 to 10"),
        ({"gather": 2.0}, "gather must be from 0 to 1"),
        ({"headroom": 1.0}, "headroom must be from 0 to 0.9"),
        ({"width": 2, "tokens_per_step": 2.5}, "tokens per step must be from 0.001 to 2"),
        ({"duration": 0.0}, "duration must be from"),
        ({"duration": float("inf")}, "duration must be from"),
        ({"warmup": -1.0}, "warmup must be from 0"),
        ({"requests": 0}, "requests must be from 1"),
        ({"pods": 0}, "pods must be from 1"),
        ({"duration": None, "warmup": 0.0}, "give --requests"),
        ({"duration": None, "requests": 9}, "has no --warmup: give 0"),
        ({"simulate_instances": 2}, "must divide the 1 attention instances, and 2 does not"),
        ({"arrivals": ClosedLoop(3), "pods": 4}, "a concurrency of 3 leaves some of 4"),
    ],
)
def test_a_value_out_of_its_range_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SimulationError, match=message):
        scenario(**changes)


def test_cards_must_fit_the_topology() -> None:
    with pytest.raises(SimulationError, match="a monolith has 0"):
        scenario("1A0F", cards=Cards(1, 1))
    with pytest.raises(SimulationError, match="others have 1"):
        scenario("1A1F", cards=Cards(1, 0))
    with pytest.raises(SimulationError, match="from 1 to 1024 cards"):
        Cards(0, 1)


def test_up_to_sixteen_attention_instances_are_simulated_one_by_one() -> None:
    assert scenario("16A1F").simulated == 16
    many = scenario("96A1F")
    assert (many.simulated, many.copies) == (16, 6)
    prime = scenario("97A1F")
    assert (prime.simulated, prime.copies) == (1, 97)
    assert scenario("96A1F", simulate_instances=96).copies == 1


def test_a_fault_of_one_attention_instance_has_all_of_them_simulated() -> None:
    chosen = scenario("96A1F", faults=Faults((Straggler("attention", 3, 2.0),)))
    assert chosen.simulated == 96
    with pytest.raises(SimulationError, match="--simulate-instances 96"):
        scenario("96A1F", simulate_instances=16, faults=Faults(failures=(Failure("attention", 0, 1.0),)))


def test_capacity_and_cards_are_those_of_pods_and_instances() -> None:
    chosen = scenario("2A3F", cards=Cards(8, 4), lanes=3, seats=5, pods=10, arrivals=OpenLoop(10.0))
    assert chosen.capacity == 2 * 8 * 3 * 5
    assert chosen.all_cards == 10 * (16 + 12)
    assert chosen.topology == parse_topology("2A3F")

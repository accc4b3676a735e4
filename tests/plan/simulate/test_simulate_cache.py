import math

import pytest

from step3.plan.deployment import Deployment
from step3.plan.hardware import HardwareCatalogue
from step3.plan.memory import memory_fit
from step3.plan.models import find_model
from step3.plan.simulate.cache import CacheRoom, cache_room
from step3.plan.simulate.errors import SimulationError
from step3.plan.topology import parse_topology
from step3.plan.workload import Contexts

H800 = HardwareCatalogue()["H800"]


def deployment(topology: str = "2A2F") -> Deployment:
    return Deployment(parse_topology(topology), H800, 8, H800, 8)


@pytest.mark.parametrize("context", [2048.0, 8192.0])
def test_the_room_holds_as_many_sequences_as_the_planner_says(context: float) -> None:
    model = find_model("Step-3")
    room = cache_room(model, deployment(), model.precision, 4096.0)
    fit = memory_fit(model, deployment(), model.precision, Contexts.fixed(context))
    assert int(room.room / room.taken(1, context)) == fit.sequences


def test_a_window_is_a_fixed_part_of_a_sequence() -> None:
    model = find_model("Llama 4 M")
    room = cache_room(model, deployment("2A2F"), model.precision, 65_536.0)
    assert room.fixed > 0
    fit = memory_fit(model, deployment("2A2F"), model.precision, Contexts.fixed(65_536.0))
    assert room.taken(1, 65_536.0) == pytest.approx(fit.sequence)


def test_weights_that_leave_no_room_are_refused() -> None:
    model, card = find_model("Step-3"), HardwareCatalogue()["L4"]
    small = Deployment(parse_topology("1A0F"), card, 1, card, 0)
    with pytest.raises(SimulationError, match="leave no room for caches on L4"):
        cache_room(model, small, model.precision, 4096.0)


@pytest.mark.parametrize("name", ["room", "per_token", "fixed"])
def test_a_cache_of_negative_or_unknown_size_is_refused(name: str) -> None:
    for value in (-1.0, math.nan):
        with pytest.raises(SimulationError, match=f"cache's {name} must be at least 0"):
            CacheRoom(**{name: value})

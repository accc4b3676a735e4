from dataclasses import replace
from pathlib import Path

import pytest
from simulated import scenario

from step3.plan.deployment import Deployment
from step3.plan.errors import PlanError, WorkloadError
from step3.plan.evaluate import Demand, at_batch
from step3.plan.hardware import HardwareCatalogue
from step3.plan.models import find_model
from step3.plan.simulate import Cards, Scenario, simulate
from step3.plan.simulate.assemble import (
    Load,
    closed_form,
    measured_scenario,
    planned_scenario,
    seats_for,
    with_run,
)
from step3.plan.simulate.errors import SimulationError
from step3.plan.simulate.measured import LayerKind, Line, MeasuredTimes, Surface
from step3.plan.simulate.pipeline import Merge
from step3.plan.simulate.requests import ClosedLoop, OpenLoop, Trace
from step3.plan.topology import parse_topology
from step3.plan.workload import Contexts

H800 = HardwareCatalogue()["H800"]


def demand(tpot: float = 0.05, model: str = "Step-3") -> Demand:
    shape = find_model(model)
    return Demand(shape, shape.precision, Contexts.fixed(1), tpot)


def planned(
    topology: str = "2A2F", load: Load | None = None, batch: int | None = 2048, **more: int
) -> Scenario:
    parsed = parse_topology(topology)
    deployment = Deployment(parsed, H800, 8, H800, 0 if parsed.is_monolith else 8)
    return planned_scenario(demand(), deployment, load or Load("4K"), 3, batch, **more)


def test_a_batch_is_over_all_attention_cards_and_a_closed_loop_takes_every_seat() -> None:
    chosen = planned()
    assert chosen.seats == 2048 // 16
    assert chosen.arrivals == ClosedLoop(3 * 2048)
    assert chosen.lengths.decoding_contexts(40_960).mean == pytest.approx(4096, rel=0.01)
    assert seats_for(2049, 16) == 129
    with pytest.raises(SimulationError, match="--batch must be at least 1"):
        seats_for(0, 16)


def test_without_a_batch_the_target_or_the_memory_fills_the_seats() -> None:
    quick = planned(batch=None, load=Load("4K"))
    parsed = parse_topology("2A2F")
    deployment = Deployment(parsed, H800, 8, H800, 8)
    slower = planned_scenario(demand(0.018), deployment, Load("4K"), 3, None)
    assert slower.seats < quick.seats
    assert closed_form(slower).seconds <= 0.018
    with_memory = at_batch(replace(demand(), contexts=Contexts.fixed(4096)), deployment, 3, 1).memory
    assert quick.seats == pytest.approx(with_memory.sequences // 3, abs=1)


def test_the_closed_form_is_the_planners() -> None:
    deployment = Deployment(parse_topology("2A2F"), H800, 8, H800, 8)
    outcome = at_batch(replace(demand(), contexts=Contexts.fixed(4096)), deployment, 3, 128)
    assert closed_form(planned()).seconds == pytest.approx(outcome.step.seconds, rel=1e-3)


@pytest.mark.parametrize(
    ("topology", "batch", "most"), [("1A1F", 1024, 1.1), ("2A2F", 2048, 1.05), ("1A0F", 512, 1.2)]
)
def test_a_full_step3_deployment_runs_close_to_the_closed_form(
    topology: str, batch: int, most: float
) -> None:
    # Five layers are dense and the head comes once a step, so that the closed form is a lower bound.
    chosen = replace(
        planned(topology, Load("4K"), batch), merge=Merge.LANE, headroom=0.0, warmup=1.0, duration=2.0
    )
    tpot, bound = simulate(chosen).token.mean, closed_form(chosen).seconds
    assert tpot is not None
    assert bound * 0.999 <= tpot <= most * bound


def test_what_cannot_serve_is_refused_with_the_planners_reason() -> None:
    with pytest.raises(SimulationError, match="2A64F cannot serve this: 64 ranges of experts are more"):
        planned("2A64F")
    deployment = Deployment(parse_topology("2A2F"), H800, 8, H800, 8)
    with pytest.raises(SimulationError, match=r"one sequence a micro-batch already takes .* give --batch"):
        planned_scenario(demand(0.001), deployment, Load("4K"), 3, None)


def test_a_context_longer_than_the_models_is_refused() -> None:
    with pytest.raises(PlanError, match="takes at most 65,536 tokens"):
        planned(load=Load("128K"))


def test_loads_are_read_and_contradictions_refused() -> None:
    assert Load(prompt="2K", output="512").lengths().prompt == Contexts.fixed(2048)
    assert Load().lengths().decoding_contexts(40_960).mean == pytest.approx(8192, rel=0.01)
    with pytest.raises(SimulationError, match="--context and --prompt contradict"):
        Load("4K", "2K")
    with pytest.raises(WorkloadError, match="is no context length"):
        Load("often").lengths()


def test_a_trace_brings_its_own_lengths(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"arrival": 0, "prompt_tokens": 700, "output_tokens": 30}\n')
    chosen = planned(load=Load(arrivals=str(path)))
    assert chosen.arrivals == Trace(path)
    assert chosen.lengths.prompt == Contexts(((700.0, 1.0),))


def measured(lanes: int = 2) -> Scenario:
    flat = Line((1.0,), (1e-3,))
    kind = LayerKind(4, Surface((1.0,), (flat,)), flat, flat, flat)
    times = MeasuredTimes([kind], Line((1.0,), (0.0,)))
    return measured_scenario(times, parse_topology("1A1F"), Cards(1, 1), Load("200", output="20"), lanes, 8)


def test_measured_times_are_simulated_like_any() -> None:
    chosen = replace(measured(), warmup=0.2, duration=1.0)
    assert chosen.seats == 8
    assert simulate(chosen).token.mean == pytest.approx(4 * 4e-3, rel=0.01)


def test_a_run_has_a_beginning_and_an_end() -> None:
    steady = with_run(measured(), None, None, None)
    assert (steady.warmup, steady.duration) == (2.0, 20.0)
    empty = with_run(replace(measured(), steady=False), 5.0, None, None)
    assert (empty.warmup, empty.duration) == (pytest.approx(2 * 20 * 16e-3), 5.0)
    opened = with_run(replace(measured(), arrivals=OpenLoop(5.0)), None, None, None)
    assert opened.warmup == pytest.approx(2 * 20 * 16e-3)
    ending = with_run(measured(), None, 30, None)
    assert (ending.warmup, ending.duration, ending.requests) == (0.0, None, 30)
    with pytest.raises(SimulationError, match="has no --warmup"):
        with_run(measured(), None, 30, 1.0)


def test_a_measured_scenario_is_one_of_this_package() -> None:
    assert measured().room == scenario().room

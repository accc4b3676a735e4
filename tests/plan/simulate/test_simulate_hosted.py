from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from simulated import AffineTimes, scenario

from step3.plan.simulate import Result, Scenario, simulate
from step3.plan.simulate.cores import Host
from step3.plan.simulate.errors import SimulationError
from step3.plan.simulate.faults import parse_failures, parse_stragglers
from step3.plan.simulate.pipeline import Merge
from step3.plan.simulate.report import as_json, render
from step3.plan.simulate.trace import Recording, trace_events

TIMES = AffineTimes(attention_s=1e-3, out_s=0.1e-3, ffn_s=2e-3, back_s=0.1e-3, head_s=0.5e-3)
STEP_WORK = {"attention": 5 * 1e-3 + 0.5e-3, "ffn": 5 * 2e-3}
"""Seconds of one lane's step, in five layers."""


def hosted(topology: str, host: Host, **changes: Any) -> Scenario:
    return scenario(topology, **{"times": TIMES, "host": host, **changes})


def step(result: Result) -> float:
    assert result.step.mean is not None
    return result.step.mean


def tokens_per_second(result: Result) -> float:
    return result.tokens_per_second


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["1A1F", "2A1F", "3A1F"]),
    st.integers(1, 3),
    st.sampled_from([0.1e-3, 1e-3, 2.3e-3]),
    st.sampled_from([0.2e-3, 1e-3]),
)
def test_with_a_core_for_each_instance_it_is_the_pipeline_with_cards(
    topology: str, lanes: int, attention: float, ffn: float
) -> None:
    times = replace(TIMES, attention_s=attention, ffn_s=ffn)
    apart = scenario(topology, times, lanes=lanes)
    same = simulate(replace(apart, host=Host(16)))
    # Calls of the same instant may be merged in another way.
    assert step(same) == pytest.approx(step(simulate(apart)), rel=2e-2)


def test_one_lane_passes_through_everything_in_turn_on_any_number_of_cores() -> None:
    whole = sum(STEP_WORK.values()) + 5 * 0.2e-3
    for cores in (1, 2, 8):
        assert step(simulate(hosted("1A1F", Host(cores), lanes=1))) == pytest.approx(whole)


def test_one_core_computes_all_work_and_never_rests() -> None:
    result = simulate(hosted("1A1F", Host(1), lanes=4, merge=Merge.LAYER))
    assert 1 <= result.merging <= 4
    whole = 4 * (STEP_WORK["attention"] + STEP_WORK["ffn"] / result.merging)
    assert step(result) == pytest.approx(whole, rel=0.01)


def test_sleeping_instances_wake_at_every_call_of_a_single_lane() -> None:
    asleep = simulate(hosted("1A1F", Host(2, wake=0.3e-3), lanes=1))
    awake = simulate(hosted("1A1F", Host(2), lanes=1))
    # The FFN and then attention, in each of five layers.
    assert step(asleep) - step(awake) == pytest.approx(10 * 0.3e-3)


def test_contention_takes_its_share_where_both_always_compute() -> None:
    even = replace(TIMES, ffn_s=1e-3, head_s=0.0, out_s=0.0, back_s=0.0)
    alone = simulate(hosted("1A1F", Host(2), times=even, lanes=2))
    both = Host(2, attention_contention=0.25, ffn_contention=0.25)
    assert step(simulate(hosted("1A1F", both, times=even, lanes=2))) == pytest.approx(1.25 * step(alone))
    assert step(alone) == pytest.approx(10e-3)


def test_an_attention_instance_that_shares_the_core_of_the_ffn_makes_fewer_tokens() -> None:
    # Of three instances on two cores the third, the FFN, is on the first one's.
    crowded = simulate(hosted("2A1F", Host(2), lanes=3))
    roomy = simulate(hosted("2A1F", Host(3), lanes=3))
    assert tokens_per_second(crowded) < 0.95 * tokens_per_second(roomy)


def test_the_front_takes_time_from_those_whose_core_it_is_on() -> None:
    wireless = replace(TIMES, out_s=0.0, back_s=0.0)
    free = simulate(hosted("1A1F", Host(1), times=wireless, lanes=1))
    served = simulate(hosted("1A1F", Host(1, front=0.2e-3), times=wireless, lanes=1))
    # Four tokens a step, and the core is never idle.
    assert step(served) - step(free) == pytest.approx(4 * 0.2e-3)


def test_shards_are_computed_side_by_side_and_replicas_share_calls() -> None:
    slow = replace(TIMES, attention_s=0.1e-3, head_s=0.1e-3, out_s=0.0, back_s=0.0)
    one = simulate(hosted("1A1F", Host(8), times=slow, lanes=2))
    shards = simulate(hosted("1A2F", Host(8), times=slow, lanes=2))
    replicas = simulate(hosted("1A2F:r2", Host(8), times=slow, lanes=2))
    assert tokens_per_second(shards) == pytest.approx(tokens_per_second(one), rel=1e-6)
    assert tokens_per_second(replicas) > 1.6 * tokens_per_second(one)


def test_a_call_waits_for_its_slowest_shard() -> None:
    faults = replace(scenario().faults, stragglers=parse_stragglers(["ffn:1=2"]))
    # Answers that come at once go back one after the other.
    wireless = replace(TIMES, back_s=0.0)
    even = simulate(hosted("1A2F", Host(8), times=wireless, lanes=1))
    slow = simulate(hosted("1A2F", Host(8), times=wireless, lanes=1, faults=faults))
    assert step(slow) - step(even) == pytest.approx(STEP_WORK["ffn"])


def test_a_monolith_computes_its_ffn_on_its_own_core() -> None:
    result = simulate(hosted("2A0F", Host(1), lanes=1))
    assert step(result) == pytest.approx(2 * sum(STEP_WORK.values()))


def test_where_a_tokens_time_goes_adds_up() -> None:
    result = simulate(hosted("2A2F", Host(2, wake=0.1e-3, front=0.1e-3), lanes=2))
    spent = result.per_token
    parts = (spent.attention, spent.out, spent.ffn, spent.back, spent.wait_attention, spent.wait_ffn)
    assert sum(parts) == pytest.approx(result.token.mean, rel=1e-6)


def test_what_limits_is_the_core_where_no_instance_is_always_at_work() -> None:
    result = simulate(hosted("2A1F", Host(1), times=replace(TIMES, ffn_s=0.2e-3), lanes=1))
    assert result.busy.core == pytest.approx(1.0, abs=0.1)
    assert result.limit.binding == "core"
    assert "the host's busiest core, busy" in result.limit.words
    alone = simulate(hosted("1A1F", Host(2), times=replace(TIMES, ffn_s=0.2e-3), lanes=3))
    assert alone.limit.binding == "attention"


def test_a_report_says_that_instances_share_a_host() -> None:
    chosen = hosted("1A1F", Host(2, is_bound=False))
    console = Console(width=80, file=StringIO())
    console.print(render("times", chosen, simulate(chosen), None))
    report = console.file.getvalue()  # type: ignore[attr-defined]
    assert "all on one host of 2 cores, over which instances wander" in report
    assert "busiest core" in report
    assert "closed form" not in report
    assert as_json(chosen, simulate(chosen), None, None)["closed_form"] is None


def test_each_ffn_instance_has_a_row_of_its_own_in_the_trace() -> None:
    recording = Recording()
    chosen = hosted("1A2F", Host(2), lanes=2)
    simulate(chosen, recorder=recording, record_from=0.3, record_until=0.4)
    events = list(trace_events(recording, chosen.topology, 1))
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {1: "attention 0", 2: "ffn 0", 3: "ffn 1"}
    computed = {event["pid"] for event in events if event["name"] == "ffn" and "lanes" in event["args"]}
    assert computed == {2, 3}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"faults": replace(scenario().faults, failures=parse_failures(["ffn@1"]))}, "--fail"),
        ({"merge": Merge.ALL}, "--merge"),
        ({"gather": 1e-3}, "--gather"),
        ({"cards": replace(scenario().cards, attention=2)}, "one card"),
        ({"topology": None}, "one by one"),
    ],
)
def test_what_cannot_be_simulated_on_a_host_is_refused(changes: dict[str, Any], named: str) -> None:
    topology = "1A1F"
    if "topology" in changes:
        topology, changes = "4A1F", {"simulate_instances": 2}
    with pytest.raises(SimulationError, match=named):
        hosted(topology, Host(2), **changes)

from dataclasses import astuple, replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from simulated import AffineTimes, no_prefill

from step3.plan.pipeline import steady_step
from step3.plan.simulate.calls import CallTimes
from step3.plan.simulate.clock import Clock, Order
from step3.plan.simulate.lanes import Instance, Lane, Load, Spent
from step3.plan.simulate.pipeline import Merge, Pipeline
from step3.plan.stages import stage_times
from step3.plan.workload import Contexts

SEQUENCES = 4
CONTEXT = 100.0


class Run:
    """Lanes that step for ever, always with the same load."""

    def __init__(
        self, times: AffineTimes, instances: int, lanes: int, slow: float = 1.0, **settings: object
    ) -> None:
        calls = CallTimes(times, Contexts.fixed(CONTEXT), no_prefill)
        self.clock = Clock()
        self.ends: dict[tuple[int, int], list[float]] = {}
        self.spent: dict[tuple[int, int], Spent] = {}
        self.idle: set[tuple[int, int]] = set()
        self.load = Load(
            calls.attention(SEQUENCES, SEQUENCES * CONTEXT), calls.head(SEQUENCES), SEQUENCES, SEQUENCES
        )
        made = [Instance(number, slow if number == 0 else 1.0) for number in range(instances)]
        self.pipeline = Pipeline(self.clock, calls, made, lanes, self.step_ended, **settings)  # type: ignore[arg-type]
        for lane in self.pipeline.lanes:
            self.pipeline.start(lane, self.load)

    def step_ended(self, lane: Lane) -> Load | None:
        key = lane.instance.number, lane.number
        self.ends.setdefault(key, []).append(self.clock.now)
        self.spent[key] = replace(lane.spent)
        return None if key in self.idle else self.load

    def steps(self, count: int) -> list[float]:
        """Seconds of a step of each lane, the mean over `count` steps after as many."""
        lanes = len(self.pipeline.lanes)
        while len(self.ends) < lanes or min(map(len, self.ends.values())) <= 2 * count:
            self.clock.run(self.clock.now + 1e-3)
        return [(ends[2 * count] - ends[count]) / count for _, ends in sorted(self.ends.items())]


MILLISECONDS = st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0, 1.3, 2.0, 3.7])
TIMES = st.builds(
    lambda attention, out, ffn, back, layers, slope: AffineTimes(
        attention * 1e-3, out * 1e-3, ffn * 1e-3, back * 1e-3, layers=layers, ffn_per_sequence=slope
    ),
    MILLISECONDS,
    MILLISECONDS,
    MILLISECONDS,
    MILLISECONDS,
    st.integers(1, 4),
    st.sampled_from([0.0, 1e-5]),
)


def closed_step(times: AffineTimes, instances: int, lanes: int, monolith: bool = False) -> float:
    everyone = SEQUENCES if monolith else SEQUENCES * instances
    stages = stage_times(times, SEQUENCES, everyone, Contexts.fixed(CONTEXT))
    return steady_step(stages, lanes, monolith).seconds


@settings(max_examples=40)
@given(TIMES, st.integers(1, 3), st.integers(1, 5), st.sampled_from([Merge.LANE, Merge.ALL]))
def test_equal_layers_take_exactly_what_the_closed_form_says(
    times: AffineTimes, instances: int, lanes: int, merge: Merge
) -> None:
    expected = closed_step(times, instances, lanes)
    assume(expected > 2e-4)
    for step in Run(times, instances, lanes, merge=merge).steps(60):
        assert step == pytest.approx(expected, rel=1e-9)


@settings(max_examples=25)
@given(TIMES, st.integers(1, 3))
def test_a_monolith_is_never_faster_than_the_closed_form(times: AffineTimes, lanes: int) -> None:
    expected = closed_step(times, 1, lanes, monolith=True)
    assume(expected > 2e-4)
    run = Run(times, 1, lanes, monolith=True)
    mean = sum(run.steps(60)) / lanes
    assert mean >= expected * (1 - 1e-3)


@settings(max_examples=25)
@given(TIMES, st.floats(0.1e-3, 1e-3), st.integers(1, 4))
def test_a_head_once_a_step_never_makes_it_faster_than_the_closed_form(
    times: AffineTimes, head: float, lanes: int
) -> None:
    times = replace(times, head_s=head)
    mean = sum(Run(times, 1, lanes, merge=Merge.LANE).steps(60)) / lanes
    assert mean >= closed_step(times, 1, lanes) * (1 - 1e-3)


@settings(max_examples=40)
@given(
    TIMES,
    st.sampled_from(["attention_s", "out_s", "ffn_s", "back_s", "head_s"]),
    st.floats(1e-5, 2e-3),
    st.integers(1, 4),
)
def test_a_slower_stage_never_makes_a_step_shorter(
    times: AffineTimes, stage: str, more: float, lanes: int
) -> None:
    assume(closed_step(times, 1, lanes) > 2e-4)
    slower = replace(times, **{stage: getattr(times, stage) + more})
    before = max(Run(times, 1, lanes, merge=Merge.NONE).steps(24))
    assert max(Run(slower, 1, lanes, merge=Merge.NONE).steps(24)) >= before * (1 - 1e-9)


@settings(max_examples=25)
@given(TIMES, st.integers(1, 3), st.integers(1, 4))
def test_where_the_time_goes_adds_up_to_the_step(times: AffineTimes, instances: int, lanes: int) -> None:
    assume(closed_step(times, instances, lanes) > 2e-4)
    run = Run(times, instances, lanes)
    run.steps(5)
    for key, spent in run.spent.items():
        assert sum(astuple(spent)) == pytest.approx(run.ends[key][-1], rel=1e-9)


def test_no_resource_works_longer_than_the_time_that_passed() -> None:
    run = Run(AffineTimes(ffn_s=3e-3), 2, 3)
    run.clock.run(0.5)
    worked = run.pipeline.worked()
    for seconds in (worked.attention, worked.out, worked.ffn, worked.back):
        assert 0 < seconds <= 0.5 + 1e-12
    assert worked.ffn == pytest.approx(0.5, rel=0.02)


def test_calls_that_wait_for_the_same_layer_are_computed_together() -> None:
    together = Run(AffineTimes(attention_s=1e-4, ffn_s=5e-3), 3, 1)
    apart = Run(AffineTimes(attention_s=1e-4, ffn_s=5e-3), 3, 1, merge=Merge.NONE)
    assert together.steps(20) == [pytest.approx(5 * 6.1e-3)] * 3
    assert together.pipeline.worked().calls == 3 * together.pipeline.worked().merged_calls
    assert apart.steps(20) == [pytest.approx(5 * 3 * 5e-3)] * 3
    assert apart.pipeline.worked().calls == apart.pipeline.worked().merged_calls


def test_lanes_of_one_instance_merge_by_layer_but_not_by_lane() -> None:
    times = AffineTimes(attention_s=1e-5, out_s=0.0, back_s=0.0, ffn_s=5e-3)
    by_lane = Run(times, 1, 4, merge=Merge.LANE).steps(20)
    by_layer = Run(times, 1, 4, merge=Merge.LAYER).steps(20)
    assert by_lane == [pytest.approx(4 * 5 * 5e-3)] * 4
    assert max(by_layer) < 0.6 * min(by_lane)


def test_an_idle_ffn_that_gathers_merges_calls_that_come_apart() -> None:
    times = AffineTimes(attention_s=1e-3, ffn_s=1e-3)
    eager = Run(times, 2, 1, slow=1.02)
    patient = Run(times, 2, 1, slow=1.02, gather=50e-6)
    eager.clock.run(1.0)
    patient.clock.run(1.0)
    assert eager.pipeline.worked().merged_calls > 1.9 / 2 * eager.pipeline.worked().calls / 2
    assert patient.pipeline.worked().calls == pytest.approx(2 * patient.pipeline.worked().merged_calls, abs=2)


def test_an_ffn_that_waits_for_all_merges_every_call_of_a_lane() -> None:
    run = Run(AffineTimes(ffn_s=2e-3), 2, 3, slow=1.3, merge=Merge.ALL)
    slow, other = run.steps(20)[:3], run.steps(20)[3:]
    assert other == pytest.approx(slow)
    assert run.pipeline.worked().calls == pytest.approx(2 * run.pipeline.worked().merged_calls, abs=6)


def test_an_ffn_that_waits_for_all_waits_for_none_that_is_idle_or_gone() -> None:
    run = Run(AffineTimes(), 3, 1, merge=Merge.ALL)
    run.idle.add((1, 0))
    run.clock.at(37e-3, Order.FAULT, run.pipeline.abort, run.pipeline.lanes[2].instance)
    run.clock.run(1.0)
    assert len(run.ends[1, 0]) == 1
    assert len(run.ends[2, 0]) <= 2
    assert len(run.ends[0, 0]) == pytest.approx(1.0 / 15e-3, abs=1)


def test_a_slow_instance_does_not_hold_up_the_others() -> None:
    slow, other = Run(AffineTimes(ffn_s=1e-4), 2, 1, slow=2.0, merge=Merge.NONE).steps(20)
    assert slow >= 5 * 3.1e-3 * (1 - 1e-9)
    assert other <= 5 * 2.2e-3


def test_messages_at_once_share_the_ffns_links_and_arrive_together() -> None:
    class Narrow(AffineTimes):
        def out(self, layer: int, sequences: float, all_sequences: float) -> float:
            return all_sequences * 1e-4

    run = Run(Narrow(), 3, 1)
    assert run.steps(20) == [pytest.approx(5 * (1e-3 + 3 * SEQUENCES * 1e-4 + 1e-3 + 0.5e-3))] * 3


def test_messages_one_after_the_other_queue_for_the_ffns_links() -> None:
    class Narrow(AffineTimes):
        def out(self, layer: int, sequences: float, all_sequences: float) -> float:
            return all_sequences * 5e-4

    run = Run(Narrow(attention_s=1e-4, ffn_s=1e-6, back_s=1e-6), 2, 2, slow=1.37, merge=Merge.NONE)
    run.clock.run(2.0)
    sent = sum(map(len, run.ends.values())) * 5
    assert sent * SEQUENCES * 5e-4 <= 2.0 * 1.01


def test_an_ffn_that_is_away_loses_its_call_and_computes_it_anew() -> None:
    undisturbed, stopped = Run(AffineTimes(), 1, 1), Run(AffineTimes(), 1, 1)
    stopped.clock.run(2.0e-3)
    stopped.pipeline.stop_ffn()
    stopped.clock.at(10e-3, Order.FAULT, stopped.pipeline.resume_ffn, 1.0)
    stopped.clock.run(10e-3)
    assert not stopped.ends
    assert stopped.steps(3) == [pytest.approx(undisturbed.steps(3)[0])]
    # It had computed for 0.5 ms when it went away at 2 ms, and began again at 10 ms.
    delay = stopped.ends[0, 0][0] - undisturbed.ends[0, 0][0]
    assert delay == pytest.approx(8.5e-3)


def test_fewer_replicas_take_more_tokens_each() -> None:
    run = Run(AffineTimes(ffn_s=0.0, ffn_per_sequence=1e-3), 1, 1)
    run.pipeline.resume_ffn(2.0)
    assert run.steps(5) == [pytest.approx(5 * (2e-3 + 2 * SEQUENCES * 1e-3))]


def test_an_aborted_instance_ends_no_step_and_leaves_the_others_alone() -> None:
    run = Run(AffineTimes(), 2, 2)
    run.clock.run(12.3e-3)
    run.pipeline.abort(run.pipeline.lanes[0].instance)
    before = {key: len(ends) for key, ends in run.ends.items()}
    run.clock.run(1.0)
    after = {key: len(ends) for key, ends in run.ends.items()}
    for lane in (0, 1):
        assert after.get((0, lane), 0) == before.get((0, lane), 0)
        assert after[1, lane] > 30

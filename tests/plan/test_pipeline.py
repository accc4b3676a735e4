"""The closed form against a queueing simulation small enough to be read."""

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from step3.plan.pipeline import CHAIN, steady_step
from step3.plan.stages import LayerTimes, StageTimes

times = st.floats(1e-6, 1e-3)
layers = st.builds(LayerTimes, times, times, times, times)


def finish_times(stages: StageTimes, lanes: int, steps: int, shared_card: bool = False) -> list[float]:
    """When lane 0 ends each step, then when all end; lanes queue at each stage, first come first served."""
    order = ("attention", "out", "ffn", "back")
    names = ["card" if shared_card and name in ("attention", "ffn") else name for name in order]
    plan = [
        (name, getattr(layer, stage))
        for layer in stages.layers
        for name, stage in zip(names, order, strict=True)
    ]
    free = dict.fromkeys(names, 0.0)
    arrivals = [(0.0, lane, 0) for lane in range(lanes)]
    finished: list[float] = []
    while arrivals:
        now, lane, done = heapq.heappop(arrivals)
        if done == steps * len(plan):
            continue
        stage, seconds = plan[done % len(plan)]
        free[stage] = max(now, free[stage]) + seconds
        if lane == 0 and (done + 1) % len(plan) == 0:
            finished.append(free[stage])
        heapq.heappush(arrivals, (free[stage], lane, done + 1))
    return [*finished, max(free.values())]


@given(layers, st.integers(1, 8), st.integers(1, 6))
def test_equal_layers_take_exactly_what_the_closed_form_says(
    layer: LayerTimes, count: int, lanes: int
) -> None:
    stages = StageTimes((layer,) * count)
    finished = finish_times(stages, lanes, steps=60)
    settled = (finished[59] - finished[30]) / 29
    assert settled == pytest.approx(steady_step(stages, lanes).seconds, rel=1e-6)


@given(st.lists(layers, min_size=1, max_size=5), st.integers(1, 5), st.booleans())
def test_for_any_layers_the_closed_form_is_a_lower_bound(
    kinds: list[LayerTimes], lanes: int, shared: bool
) -> None:
    stages = StageTimes(tuple(kinds))
    bound = steady_step(stages, lanes, shared).seconds
    assert finish_times(stages, lanes, 20, shared)[-1] / 20 >= bound * (1 - 1e-9)


def test_what_binds_is_named() -> None:
    balanced = StageTimes((LayerTimes(2, 1, 2, 1),))
    assert steady_step(balanced, 2).binding == CHAIN
    assert steady_step(balanced, 4).binding == "attention"
    assert steady_step(StageTimes((LayerTimes(1, 1, 3, 1),)), 3).binding == "ffn"
    assert steady_step(StageTimes((LayerTimes(1, 1, 2, 4),)), 3).binding == "back"


def test_one_lane_is_bound_by_its_longest_stage_not_by_the_round_trip() -> None:
    assert steady_step(StageTimes((LayerTimes(1, 1, 3, 1),)), 1).binding == "ffn"


def test_the_head_keeps_the_attention_card_busy() -> None:
    with_head = StageTimes((LayerTimes(1, 1, 1, 1),) * 2, head=3.0)
    assert with_head.attention == 5
    assert with_head.chain == 11
    assert steady_step(with_head, 3).seconds == 15


def test_in_the_monolith_attention_and_ffn_take_turns() -> None:
    step = steady_step(StageTimes((LayerTimes(2, 1, 3, 1),)), 2, shared_card=True)
    assert step.seconds == 10
    assert step.binding == "card"
    assert step.busy == {"card": 1.0, "out": 0.2, "back": 0.2}

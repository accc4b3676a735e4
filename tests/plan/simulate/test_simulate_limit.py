from dataclasses import replace

import pytest
from simulated import AffineTimes, lengths, scenario

from step3.plan.simulate import simulate
from step3.plan.simulate.requests import OpenLoop


@pytest.mark.parametrize(
    ("times", "binding"),
    [
        (AffineTimes(attention_s=4e-3), "attention"),
        (AffineTimes(out_s=4e-3), "out"),
        (AffineTimes(ffn_s=4e-3), "ffn"),
        (AffineTimes(back_s=4e-3), "back"),
        (AffineTimes(), "round trip"),
    ],
)
def test_the_stage_that_is_always_busy_limits(times: AffineTimes, binding: str) -> None:
    assert simulate(scenario("1A1F", times, lanes=2, duration=3.0)).limit.binding == binding


def test_a_monolith_is_limited_by_its_cards() -> None:
    limit = simulate(scenario("1A0F", AffineTimes(), lanes=4, duration=3.0)).limit
    assert limit.binding == "card"
    assert "the cards, busy" in limit.words


def test_few_requests_limit_whatever_the_resources_do() -> None:
    few = scenario("1A1F", arrivals=OpenLoop(5.0), lengths=lengths(50, 10), warmup=1.0, duration=4.0)
    limit = simulate(few).limit
    assert limit.binding == "arrivals"
    assert "queue grows" not in limit.words


def test_more_requests_than_can_be_served_are_told() -> None:
    many = scenario("1A1F", AffineTimes(ffn_s=2e-3), arrivals=OpenLoop(500.0), duration=3.0)
    limit = simulate(many).limit
    assert limit.binding == "ffn"
    assert limit.words.endswith("more requests come than are served, and the queue grows")
    assert simulate(replace(many, arrivals=OpenLoop(5.0))).limit.binding == "arrivals"

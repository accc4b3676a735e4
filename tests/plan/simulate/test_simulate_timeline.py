import pytest
from hypothesis import given
from hypothesis import strategies as st

from step3.plan.simulate.timeline import Timeline


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 100)), max_size=50), st.floats(0.1, 10))
def test_nothing_is_lost_however_often_the_spans_double(
    notes: list[tuple[float, float]], width: float
) -> None:
    timeline = Timeline(width, capacity=8)
    for seconds, value in notes:
        timeline.add(seconds, value)
    end = 8 * timeline.width
    rates = timeline.rates(end)
    assert len(rates) <= 8
    assert sum(rate for _, rate in rates) * timeline.width == pytest.approx(
        sum(v for _, v in notes), abs=1e-6
    )


@given(st.floats(0, 50), st.floats(0, 50), st.floats(0.1, 100))
def test_a_spread_value_adds_up_to_itself(start: float, length: float, value: float) -> None:
    timeline = Timeline(1.0, capacity=200)
    timeline.spread(start, start + length, value)
    assert sum(rate for _, rate in timeline.rates(200.0)) == pytest.approx(value)


def test_a_spread_value_lies_evenly_over_its_time() -> None:
    timeline = Timeline(1.0)
    timeline.spread(0.5, 2.5, 4.0)
    assert timeline.rates(3.0) == [(0.5, 1.0), (1.5, 2.0), (2.5, 1.0)]


def test_means_are_of_each_span_and_skip_empty_ones() -> None:
    timeline = Timeline(1.0)
    timeline.add(0.2, 1.0)
    timeline.add(0.4, 3.0)
    timeline.add(2.5, 7.0)
    assert timeline.means() == [(0.5, 2.0), (2.5, 7.0)]


def test_the_last_span_counts_only_up_to_the_end() -> None:
    timeline = Timeline(1.0)
    timeline.add(1.1, 5.0)
    assert timeline.rates(1.5)[-1] == (1.25, 10.0)

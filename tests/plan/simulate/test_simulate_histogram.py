import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from step3.plan.simulate.histogram import RATIO, Histogram

SECONDS = st.floats(1e-6, 1e4)


@given(st.lists(st.tuples(SECONDS, st.integers(1, 50)), min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_percentiles_are_those_of_all_values_to_a_quarter_of_a_percent(
    weighted: list[tuple[float, int]], share: float
) -> None:
    histogram = Histogram()
    for value, weight in weighted:
        histogram.add(value, weight)
    values = np.repeat([value for value, _ in weighted], [weight for _, weight in weighted])
    exact = float(np.quantile(values, share, method="inverted_cdf"))
    assert histogram.percentile(share) == pytest.approx(exact, rel=RATIO - 1)
    assert histogram.mean == pytest.approx(values.mean())
    assert histogram.greatest == values.max()
    assert histogram.count == len(values)


def test_an_empty_histogram_has_no_percentiles() -> None:
    histogram = Histogram()
    histogram.add(1.0, weight=0)
    assert histogram.percentile(0.5) is None
    assert histogram.mean is None
    assert histogram.greatest is None


def test_the_bins_do_not_grow_with_the_values() -> None:
    histogram = Histogram()
    for value in np.random.default_rng(0).lognormal(0, 20, 30_000).tolist():
        histogram.add(value)
    assert len(histogram._bins) < 8_400


def test_zero_counts_as_the_shortest_time() -> None:
    histogram = Histogram()
    histogram.add(0.0)
    assert histogram.percentile(0.99) == 0.0

from itertools import islice

import numpy as np
import pytest

from step3.plan.simulate.jitter import random_factors


@pytest.mark.parametrize("variation", [0.05, 0.5])
def test_factors_have_mean_one_and_the_given_variation(variation: float) -> None:
    factors = np.array(list(islice(random_factors(variation, 0), 200_000)))
    assert factors.mean() == pytest.approx(1, abs=0.01)
    assert factors.std() == pytest.approx(variation, rel=0.03)
    assert factors.min() > 0


def test_factors_are_a_function_of_the_seed() -> None:
    def some(seed: int) -> list[float]:
        return list(islice(random_factors(0.1, seed), 5000))

    assert some(1) == some(1)
    assert some(1) != some(2)

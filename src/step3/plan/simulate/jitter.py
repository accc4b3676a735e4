"""Random variation of the calls' times."""

import math
from collections.abc import Iterator

import numpy as np

_BLOCK = 4096


def steady_factors() -> Iterator[float]:
    """1, for ever."""
    while True:
        yield 1.0


def random_factors(variation: float, seed: int) -> Iterator[float]:
    """Lognormal factors with mean 1.

    Args:
        variation: standard deviation over mean.
        seed: the same seed gives the same factors.
    """
    generator = np.random.default_rng([seed, 3])
    sigma = math.sqrt(math.log1p(variation**2))
    while True:
        yield from np.exp(generator.normal(-(sigma**2) / 2, sigma, _BLOCK)).tolist()

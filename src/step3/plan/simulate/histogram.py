"""Percentiles of any number of values in fixed memory."""

import math

RATIO = 1.005
"""Width of a bin: a percentile is wrong by 0.25 % at most."""

SHORTEST = 1e-9
LONGEST = 1e9

_LOG_RATIO = math.log(RATIO)
_LOG_SHORTEST = math.log(SHORTEST)


class Histogram:
    """Counts of positive values by logarithmic bins; mean, least and greatest are exact.

    At most 8,310 bins are kept, however many values are added. Values under a nanosecond count as one.

    Attributes:
        count: weight of all values.
        total: their weighted sum.
    """

    __slots__ = ("_bins", "_greatest", "_least", "count", "total")

    def __init__(self) -> None:
        self._bins: dict[int, float] = {}
        self._least, self._greatest = math.inf, -math.inf
        self.count = 0.0
        self.total = 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        """Count `value` so many times."""
        if weight <= 0:
            return
        bounded = min(max(value, SHORTEST), LONGEST)
        place = int((math.log(bounded) - _LOG_SHORTEST) / _LOG_RATIO)
        self._bins[place] = self._bins.get(place, 0.0) + weight
        self.count += weight
        self.total += value * weight
        if value < self._least:
            self._least = value
        if value > self._greatest:
            self._greatest = value

    @property
    def mean(self) -> float | None:
        """Weighted mean; None without values."""
        return self.total / self.count if self.count else None

    @property
    def greatest(self) -> float | None:
        """The greatest value; None without values."""
        return self._greatest if self.count else None

    def percentile(self, share: float) -> float | None:
        """The value that this share (0 to 1) of the values does not exceed; None without values."""
        if not self.count:
            return None
        wanted, seen = share * self.count, 0.0
        for place in sorted(self._bins):
            seen += self._bins[place]
            if seen >= wanted * (1 - 1e-12):
                middle = math.exp(_LOG_SHORTEST + (place + 0.5) * _LOG_RATIO)
                return min(max(middle, self._least), self._greatest)
        return self._greatest

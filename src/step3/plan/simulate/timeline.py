"""A quantity over simulated time, in fixed memory however long the simulation."""


class Timeline:
    """Sums and counts of values by equal spans of time; the spans double whenever there would be too many.

    Args:
        width: seconds of a span at the beginning.
        capacity: most spans, an even number.
    """

    def __init__(self, width: float, capacity: int = 240) -> None:
        self.width = width
        self._capacity = capacity
        self._sums: list[float] = []
        self._counts: list[float] = []

    def add(self, seconds: float, value: float, weight: float = 1.0) -> None:
        """Note `value` at a time."""
        place = int(seconds / self.width)
        while place >= self._capacity:
            self._double()
            place = int(seconds / self.width)
        missing = place + 1 - len(self._sums)
        if missing > 0:
            self._sums += [0.0] * missing
            self._counts += [0.0] * missing
        self._sums[place] += value * weight
        self._counts[place] += weight

    def spread(self, start: float, end: float, value: float) -> None:
        """Note `value` as spread evenly over the time from `start` to `end`."""
        length = end - start
        while length > 0 and start < end:
            edge = (int(start / self.width + 1e-9) + 1) * self.width
            until = min(edge, end)
            self.add((start + until) / 2, value * ((until - start) / length))
            start = until
        if length <= 0:
            self.add(end, value)

    def _double(self) -> None:
        for values in (self._sums, self._counts):
            if len(values) % 2:
                values.append(0.0)
            values[:] = [values[i] + values[i + 1] for i in range(0, len(values), 2)]
        self.width *= 2

    def means(self) -> list[tuple[float, float]]:
        """(middle of the span in seconds, mean of its values); spans without values are left out."""
        return [
            ((i + 0.5) * self.width, total / count)
            for i, (total, count) in enumerate(zip(self._sums, self._counts, strict=True))
            if count
        ]

    def rates(self, end: float) -> list[tuple[float, float]]:
        """(middle of the span in seconds, sum of its values for each second), the last span up to `end`."""
        rates = []
        for i, total in enumerate(self._sums):
            start = i * self.width
            length = min(self.width, end - start)
            if length > 0:
                rates.append((start + length / 2, total / length))
        return rates

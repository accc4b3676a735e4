"""How often a sequence holds each token, for penalties: kept token by token, of the size of what was seen."""

from collections.abc import Iterable, Sequence

import numpy as np

_FIRST_CAPACITY = 64


class TokenCounts:
    """The different tokens of a prompt and an output, with their counts in the output.

    Args:
        prompt: the tokens that a repetition penalty is to know besides the output's.
        output: the output so far.
    """

    def __init__(self, prompt: Iterable[int] = (), output: Iterable[int] = ()) -> None:
        seen = list(dict.fromkeys(prompt))
        self._places = {token_id: place for place, token_id in enumerate(seen)}
        capacity = len(seen) + _FIRST_CAPACITY
        self._ids = np.zeros(capacity, dtype=np.int64)
        self._counts = np.zeros(capacity, dtype=np.float32)
        self._ids[: len(seen)] = seen
        for token_id in output:
            self.add(token_id)

    def add(self, token_id: int) -> None:
        """Counts one more token of the output."""
        place = self._places.get(token_id)
        if place is None:
            place = self._places[token_id] = len(self._places)
            if place == len(self._ids):
                self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
                self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
            self._ids[place] = token_id
        self._counts[place] += 1

    def seen(self, more: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
        """The tokens and how often the output holds them.

        Args:
            more: tokens that count as if the output went on with them.

        Returns:
            Ids `[seen]` int64, different ones, and counts `[seen]` float32, 0 for those of the prompt alone.
            Without `more` they are views, to be read before the next `add`.
        """
        size = len(self._places)
        if not more:
            return self._ids[:size], self._counts[:size]
        new = [token_id for token_id in dict.fromkeys(more) if token_id not in self._places]
        ids = np.concatenate((self._ids[:size], np.array(new, dtype=np.int64)))
        counts = np.concatenate((self._counts[:size], np.zeros(len(new), dtype=np.float32)))
        places = {token_id: size + place for place, token_id in enumerate(new)}
        for token_id in more:
            counts[places.get(token_id, self._places.get(token_id))] += 1
        return ids, counts

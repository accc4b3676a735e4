"""Drafts without a draft model: what followed the last tokens where they stood before.

Prompt lookup (A. Saxena, "Prompt Lookup Decoding", 2023, https://github.com/apoorvumang/prompt-lookup-decoding)
over prompt and output, with the hash chains of LZ77 compressors: tokens are indexed once, and a look-up takes
time that does not grow with the text.
"""

from collections.abc import Sequence

_CHAIN = 32
"""Earlier places that are looked at, the latest first."""


class PromptLookup:
    """Finds the longest earlier occurrence of a sequence's last tokens.

    Args:
        tokens: prompt and output; the list may grow, and what is new is indexed at the next look-up.
        min_match: the fewest last tokens that must have stood there before.
        max_match: more than these are not compared.
    """

    def __init__(self, tokens: Sequence[int], min_match: int = 3, max_match: int = 16) -> None:
        self._tokens = tokens
        self._min, self._max = min_match, max_match
        self._latest: dict[tuple[int, ...], int] = {}
        # Of a place behind `min_match` tokens: the place before it behind the same ones, or 0.
        self._earlier = [0] * min_match

    def draft(self, limit: int) -> list[int]:
        """What followed there, at most `limit` tokens; empty if the last tokens are new."""
        tokens, end = self._tokens, len(self._tokens)
        self._index(end)
        if end <= self._min:
            return []
        place, best, best_place = self._earlier[end], self._min - 1, 0
        for _ in range(_CHAIN):
            if not place or best >= self._max:
                break
            if place > best and tokens[place - 1 - best : place] == tokens[end - 1 - best : end]:
                length = self._match(place, end, best + 1)
                if length > best:
                    best, best_place = length, place
            place = self._earlier[place]
        if not best_place:
            return []
        drafted = list(tokens[best_place : best_place + limit])
        # A text that repeats itself goes on with what is just being drafted.
        while len(drafted) < limit:
            drafted.append(drafted[len(drafted) - (end - best_place)])
        return drafted

    def _index(self, end: int) -> None:
        tokens, size = self._tokens, self._min
        for place in range(len(self._earlier), end + 1):
            gram = tuple(tokens[place - size : place])
            self._earlier.append(self._latest.get(gram, 0))
            self._latest[gram] = place

    def _match(self, place: int, end: int, length: int) -> int:
        """How many tokens before the two places are equal, `length` of which are known to be."""
        tokens, most = self._tokens, min(self._max, place)
        while length < most and tokens[place - 1 - length] == tokens[end - 1 - length]:
            length += 1
        return length

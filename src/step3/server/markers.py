"""Finding fixed words in text that arrives in pieces."""

from __future__ import annotations

import re
from typing import NamedTuple


class Found(NamedTuple):
    """What a search saw: plain text up to `plain_end`, then `word`, which ends at `word_end`.

    Without a word, the text from `plain_end` on may be the beginning of one: whoever searches keeps it and
    puts the next piece behind it.
    """

    plain_end: int
    word: str | None
    word_end: int


class Markers:
    """A set of words to look for; none may be the beginning of another.

    Cutting the text differently never changes which words are found, and a search without a hit leaves
    less than the longest word to be looked at again, so reading a stream takes time linear in its length.
    """

    def __init__(self, *words: str) -> None:
        self._pattern = re.compile("|".join(map(re.escape, words)))
        self._beginnings = frozenset(word[:length] for word in words for length in range(1, len(word)))
        self._longest = max(map(len, words))

    def find(self, text: str, start: int = 0) -> Found:
        """The first of the words in `text[start:]`."""
        match = self._pattern.search(text, start)
        if match:
            return Found(match.start(), match.group(), match.end())
        for index in range(max(start, len(text) - self._longest + 1), len(text)):
            if text[index:] in self._beginnings:
                return Found(index, None, index)
        return Found(len(text), None, len(text))

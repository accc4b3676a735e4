"""Finds stop strings in text as it comes, and holds back only what may be the beginning of one.

The strings are one automaton (A. V. Aho and M. J. Corasick, "Efficient String Matching: An Aid to
Bibliographic Search", CACM 18(6), 1975), so that the time is linear in the text, however many strings there
are.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StopPiece:
    """What a piece of text adds to an output.

    Attributes:
        text: what may be shown now.
        matched: the stop string that ends the output, or None.
    """

    text: str
    matched: str | None = None


class StopStrings:
    """Stop strings, made ready once for all outputs of a request.

    The string that is complete first ends the output; of those complete at once the one given first.

    Args:
        strings: not empty ones.
        include: whether the output keeps the stop string.
    """

    def __init__(self, strings: Sequence[str], include: bool = False) -> None:
        self.strings = tuple(strings)
        self.include = include
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._shorter = [0]
        self._complete: list[int | None] = [None]
        for number, string in enumerate(self.strings):
            self._insert(number, string)
        self._link()

    def _insert(self, number: int, string: str) -> None:
        node = 0
        for char in string:
            if char not in self._next[node]:
                self._next[node][char] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[node] + 1)
                self._shorter.append(0)
                self._complete.append(None)
            node = self._next[node][char]
        if self._complete[node] is None:
            self._complete[node] = number

    def _link(self) -> None:
        """Links each node to the longest other that its text ends with, and takes over its stop string."""
        waiting = deque(self._next[0].values())
        while waiting:
            node = waiting.popleft()
            for char, child in self._next[node].items():
                self._shorter[child] = self.step(self._shorter[node], char)
                waiting.append(child)
            ends = [self._complete[node], self._complete[self._shorter[node]]]
            self._complete[node] = min((number for number in ends if number is not None), default=None)

    def step(self, node: int, char: str) -> int:
        """The node of the longest beginning of a stop string that a text ends with, one character on."""
        while node and char not in self._next[node]:
            node = self._shorter[node]
        return self._next[node].get(char, 0)

    def depth(self, node: int) -> int:
        """How many characters of a stop string the text ends with."""
        return self._depth[node]

    def complete(self, node: int) -> str | None:
        """The stop string that ends here."""
        number = self._complete[node]
        return None if number is None else self.strings[number]

    def watch(self) -> "StopWatch":
        """A watch over one output."""
        return StopWatch(self)


class StopWatch:
    """Passes one output's text on until a stop string is complete."""

    def __init__(self, stops: StopStrings) -> None:
        self._stops = stops
        self._node = 0
        self._held = ""

    def feed(self, text: str, armed: bool = True) -> StopPiece:
        """Takes new text.

        Args:
            text: what the output goes on with.
            armed: whether a stop string that is complete in it counts; it may have begun in text that was
                not armed.

        Returns:
            What may be shown. When a string matched, that is all up to it, and nothing more may be fed.
        """
        if not self._stops.strings:
            return StopPiece(text)
        pending = self._held + text
        for place, char in enumerate(text, start=len(self._held) + 1):
            self._node = self._stops.step(self._node, char)
            matched = self._stops.complete(self._node) if armed else None
            if matched is not None:
                self._held = ""
                return StopPiece(pending[: place if self._stops.include else place - len(matched)], matched)
        # Text that stays anyway need not wait for what it may turn out to be.
        shown = len(pending) - (0 if self._stops.include else self._stops.depth(self._node))
        self._held = pending[shown:]
        return StopPiece(pending[:shown])

    def flush(self) -> str:
        """The text held back, for an output that ends otherwise."""
        held, self._held = self._held, ""
        return held

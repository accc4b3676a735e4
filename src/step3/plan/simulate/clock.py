"""Simulated time: what happens next, and in which order things happen that happen at once."""

from collections.abc import Callable
from enum import IntEnum
from heapq import heapify, heappop, heappush
from typing import Any


class Order(IntEnum):
    """Which of several events of the same instant comes first: causes before what waits for them."""

    FAULT = 0
    ARRIVAL = 1
    WAKE = 2
    READY = 3
    STEP_END = 4
    SEND = 5
    REACH = 6
    ANSWER = 7
    SERVE = 8


Event = tuple[float, int, int, Callable[[Any], None], Any]
"""(seconds, order, number, action, its argument); the number makes every event different."""


class Clock:
    """A queue of events; time jumps from one to the next.

    Attributes:
        now: seconds since the simulation began.
        events: how many have happened.
    """

    __slots__ = ("_heap", "_number", "events", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self._heap: list[Event] = []
        self._number = 0

    def at(self, seconds: float, order: int, action: Callable[[Any], None], argument: Any) -> None:
        """Call `action(argument)` at that time, not before now."""
        self._number += 1
        heappush(self._heap, (seconds, order, self._number, action, argument))

    def simultaneous(self, order: int) -> Any:
        """The argument of the next event, taken off the queue, if it is of this order and happens now."""
        heap = self._heap
        if heap and heap[0][0] == self.now and heap[0][1] == order:
            self.events += 1
            return heappop(heap)[4]
        return None

    def drop(self, concerns: Callable[[Callable[[Any], None], Any], bool]) -> None:
        """Forget every event for whose action and argument `concerns` is true."""
        self._heap = [event for event in self._heap if not concerns(event[3], event[4])]
        heapify(self._heap)

    def run(self, until: float) -> bool:
        """Let everything happen that is due up to `until`.

        Returns:
            Whether anything is left to happen later.
        """
        while self._heap and self._heap[0][0] <= until:
            self.now, _, _, action, argument = heappop(self._heap)
            self.events += 1
            action(argument)
        if self._heap:
            self.now = until
        return bool(self._heap)

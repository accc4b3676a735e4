"""The cores of a host that several instances share: who computes at the same time, and how fast.

An instance computes in one thread, and its threads take turns on a core in slices that are short against
what they compute, so that those at work on a core are each as fast as they are few. Cores share memory and
its bandwidth: work takes longer while others work too.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from step3.plan.simulate.clock import Clock, Order
from step3.plan.simulate.errors import SimulationError

MAX_CORES = 4096

Begin = Callable[[], float]
"""Called when a piece of work begins; gives the seconds that it takes on a core of its own."""
Done = Callable[[float], None]
"""Called when it is done, with the second at which it began."""


@dataclass(frozen=True)
class Host:
    """A host on which all instances run.

    Raises:
        SimulationError: a value is out of range; it is named.
    """

    cores: int
    is_bound: bool = True
    """Instance n, attention instances first, has core n modulo their number; else all wander."""
    attention_contention: float = 0.0
    """By what share attention takes longer while all other cores are at work; in proportion for fewer."""
    ffn_contention: float = 0.0
    """The same of an FFN instance."""
    wake: float = 0.0
    """Seconds from when a sleeping instance gets something to do until it begins."""
    front: float = 0.0
    """Seconds for each token of the process in front of all instances, on any core."""

    def __post_init__(self) -> None:
        if not 1 <= self.cores <= MAX_CORES:
            raise SimulationError(f"a host has from 1 to {MAX_CORES:,} cores, not {self.cores}")
        for name in ("attention_contention", "ffn_contention", "wake", "front"):
            value = getattr(self, name)
            if not 0 <= value <= 1000:
                raise SimulationError(f"{name.replace('_', ' ')} must be from 0 to 1000, not {value:g}")


@dataclass(eq=False)
class Thread:
    """What computes one thing after the other.

    Attributes:
        core: the one that it is bound to; None if it wanders.
        contention: see `Host`.
        wake: seconds that it takes to begin when it had nothing to do.
        busy: seconds of work that is done, as the clock counts them.
        began: when what it computes began; None while it computes nothing.
    """

    core: int | None = None
    contention: float = 0.0
    wake: float = 0.0
    busy: float = 0.0
    began: float | None = None
    _queue: deque[tuple[Begin, Done]] = field(default_factory=deque)
    _is_awake: bool = False
    _done: Done | None = None
    _left: float = 0.0
    _rate: float = 1.0


class Cores:
    """Shares a host's cores among threads.

    Args:
        clock: the simulation's time.
        count: cores.

    Attributes:
        busy: seconds of work of each core, up to the last change.
    """

    def __init__(self, clock: Clock, count: int) -> None:
        self._clock, self._count = clock, count
        self.busy = [0.0] * count
        self._running: list[Thread] = []
        self._loads = [0.0] * count
        self._since = 0.0
        self._next = 0

    def submit(self, thread: Thread, begin: Begin, done: Done) -> None:
        """Have a thread compute something after all that it was given before."""
        thread._queue.append((begin, done))
        if not thread._is_awake:
            thread._is_awake = True
            self._clock.at(self._clock.now + thread.wake, Order.SERVE, self._begin, thread)

    def _begin(self, thread: Thread) -> None:
        begin, thread._done = thread._queue.popleft()
        self._advance()
        thread.began, thread._left = self._clock.now, begin()
        self._running.append(thread)
        self._expect()

    def _advance(self) -> None:
        """Count what was computed since the last change."""
        passed, self._since = self._clock.now - self._since, self._clock.now
        for thread in self._running:
            thread._left -= passed * thread._rate
        for core, load in enumerate(self._loads):
            self.busy[core] += passed * min(load, 1.0)

    def _expect(self) -> None:
        """Set how fast each thread is from now on, and look when the first is done."""
        self._next += 1
        self._set_rates()
        if not self._running:
            return
        first = min(self._running, key=lambda thread: thread._left / thread._rate)
        end = self._clock.now + max(first._left / first._rate, 0.0)
        self._clock.at(end, Order.ANSWER, self._end, (self._next, first))

    def _set_rates(self) -> None:
        running, count = self._running, self._count
        loads = [0.0] * count
        for thread in running:
            if thread.core is not None:
                loads[thread.core] += 1
        wandering = sum(thread.core is None for thread in running)
        level = _water_level(loads, wandering) if wandering else 0.0
        self._loads = [max(load, level) for load in loads]
        working = min(sum(load > 0 for load in loads) + wandering, count)
        others = (working - 1) / (count - 1) if count > 1 else 0.0
        for thread in running:
            load = level if thread.core is None else max(level, loads[thread.core])
            thread._rate = 1 / max(load, 1.0) / (1 + thread.contention * others)

    def _end(self, expected: tuple[int, Thread]) -> None:
        number, thread = expected
        if number != self._next:
            return
        self._advance()
        self._running.remove(thread)
        began, done = thread.began, thread._done
        assert began is not None
        assert done is not None
        thread.busy += self._clock.now - began
        thread.began = thread._done = None
        done(began)
        if thread._queue:
            self._begin(thread)
        else:
            thread._is_awake = False
            self._expect()


def _water_level(loads: list[float], amount: float) -> float:
    """How high the least loaded cores come when `amount` more threads spread over them evenly."""
    rising = sorted(loads)
    poured = 0.0
    for count, load in enumerate(rising, 1):
        following = rising[count] if count < len(rising) else float("inf")
        poured += load
        level = (poured + amount) / count
        if level <= following:
            return level
    raise AssertionError("the last core takes whatever is left")

"""What is in flight: micro-batches, what they compute, whose they are, and who watches."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Load:
    """What one lane computes in a step."""

    attention: list[float]
    """Seconds on the busiest card by kind of layer."""
    head: float
    """Seconds of the output head on the busiest card."""
    sequences: float
    """On the busiest card, prompt tokens counted as the sequences that would be as many tokens."""
    total: float
    """On all cards for which this instance stands."""


@dataclass
class Spent:
    """Where the seconds of a step went."""

    attention: float = 0.0
    out: float = 0.0
    ffn: float = 0.0
    back: float = 0.0
    wait_attention: float = 0.0
    """For the card, while it computes for other lanes."""
    wait_ffn: float = 0.0
    """For the FFN, while it computes for other lanes or is away."""


class Recorder(Protocol):
    """Sees every span of work."""

    def span(self, stage: str, lane: "Lane", start: float, seconds: float, batch: float) -> None:
        """`stage` worked for a lane at its current layer."""
        ...

    def served(
        self, lanes: list["Lane"], start: float, seconds: float, batch: float, instance: int | None = None
    ) -> None:
        """The FFN computed one call for these lanes; `instance` is None where all of them did, alike."""
        ...


class Instance:
    """One attention instance as the pipeline sees it: when it and its links are free, and how slow they are.

    Attributes:
        number: from 0.
        slowness: factor on its seconds; its slowest card's.
        link_slowness: factor on the seconds of its links.
        free, out_free, back_free: when it and its links have done all that they were given.
        is_sending: a message of its is being put on the wire.
        busy: seconds of work in attention, out and back.
    """

    __slots__ = (
        "back_busy",
        "back_free",
        "busy",
        "free",
        "is_sending",
        "link_slowness",
        "number",
        "out_busy",
        "out_free",
        "slowness",
    )

    def __init__(self, number: int, slowness: float = 1.0, link_slowness: float = 1.0) -> None:
        self.number = number
        self.slowness, self.link_slowness = slowness, link_slowness
        self.free = self.out_free = self.back_free = 0.0
        self.is_sending = False
        self.busy = self.out_busy = self.back_busy = 0.0


class Lane:
    """One micro-batch in flight.

    Attributes:
        instance: whose it is.
        number: within the instance, from 0.
        layer: the one whose FFN comes next in its step; their number behind the last.
        load: its step; None while it has nothing to do.
        since: when it came to where it waits.
        is_waiting: its call waits for the FFN.
    """

    __slots__ = ("instance", "is_waiting", "layer", "load", "number", "since", "spent")

    def __init__(self, instance: Instance, number: int) -> None:
        self.instance, self.number = instance, number
        self.layer = 0
        self.load: Load | None = None
        self.since = 0.0
        self.is_waiting = False
        self.spent = Spent()

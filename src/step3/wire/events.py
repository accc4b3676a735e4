"""What an endpoint tells its owner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from step3.wire.connection import Peer


class Ticket(NamedTuple):
    """One call that was pushed to one peer; its answer names it. A tuple, as one is made for every call.

    Attributes:
        call: counted by the attention endpoint; the tickets of one push to several peers share it.
        pushed_ns: on this side's monotonic clock.
    """

    peer: Peer
    lane: int
    layer: int
    call: int
    slot: int
    tokens: int
    pushed_ns: int

    def __str__(self) -> str:
        return f"call {self.call} (lane {self.lane}, layer {self.layer}) at {self.peer}"


class Times(NamedTuple):
    """When a call passed where, in nanoseconds of each side's own monotonic clock.

    Differences within a side need no common clock: the wire took (answered - pushed) - (finished - arrived),
    the call waited started - arrived, its FFN took finished - started.

    Attributes:
        pushed_ns, answered_ns: the attention side sent the call, and had all of the answer.
        arrived_ns, started_ns, finished_ns: the FFN side had all of the call, took it, and gave its answer.
    """

    pushed_ns: int
    arrived_ns: int
    started_ns: int
    finished_ns: int
    answered_ns: int


class Answer(NamedTuple):
    """A partial sum has come.

    Attributes:
        partial: `[tokens, hidden]` in the format that was asked for: a view of the slot, valid until
        `release`.
        release: gives the slot back; to be called once the partial sum was used.
    """

    ticket: Ticket
    partial: Tensor
    times: Times
    release: Callable[[], None]


@dataclass(frozen=True, eq=False)
class Failed:
    """The FFN side could not answer a call; its slot is free again."""

    ticket: Ticket
    message: str


@dataclass(frozen=True, eq=False)
class Late:
    """A call was not answered within its timeout; the answer may still come."""

    ticket: Ticket


@dataclass(frozen=True, eq=False)
class Joined:
    """A peer has proved that it knows the secret, and can be used."""

    peer: Peer


@dataclass(frozen=True, eq=False)
class Gone:
    """A peer's connection has ended; its buffers are freed.

    Attributes:
        graceful: it said goodbye; `reason` is then its last word.
        lost: the calls whose answers will not come, oldest first.
    """

    peer: Peer
    reason: str
    graceful: bool
    lost: tuple[Ticket, ...]


@dataclass(frozen=True, eq=False)
class Unreachable:
    """A `connect` came to nothing: nobody there, a wrong secret, a refusal."""

    address: str
    reason: str


Event = Answer | Failed | Late | Joined | Gone | Unreachable

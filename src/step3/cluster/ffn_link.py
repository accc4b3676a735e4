"""An attention instance's way to the FFN instances over the wire, whatever becomes of them.

A call goes to one replica of every shard. Its answer is the sum of their partial sums in the order of the
shards. What a dead, frozen or slow instance owes is asked of a replica at once, or waits until the instance
is there again; an answer that comes after all belongs to a ticket that nobody holds any more, and is dropped.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from step3.engine.config import EngineError
from step3.engine.driver import Arrived
from step3.engine.timeline import Stage, Timeline
from step3.ffn import FFNCall
from step3.wire import (
    Answer,
    AttentionEndpoint,
    Event,
    Failed,
    Gone,
    Joined,
    Late,
    Peer,
    Ticket,
    Unreachable,
    WireError,
)

log = logging.getLogger("step3.cluster")

FIRST_RETRY, LONGEST_RETRY = 0.05, 1.0
"""Seconds between attempts to reach an FFN instance."""

LEAST_PATIENCE = 0.3
"""Seconds after which an answer counts as late, if answers have been quick so far."""

MOST_ATTEMPTS = 4
"""How often a call may fail in FFN instances before the attention instance gives up."""

MOST_DEATHS = 8
"""How many FFN instances may be lost with a call before the attention instance gives up: it may be the call
that kills them."""


@dataclass(frozen=True)
class FFNMember:
    """An FFN instance that is to be used.

    Attributes:
        shard: which part of every FFN it holds.
        epoch: of its incarnation.
        address: where it listens.
    """

    instance: int
    shard: int
    epoch: int
    address: str


@dataclass(eq=False)
class _Pending:
    """A lane's call that is on its way.

    Attributes:
        answers: by shard.
        owed: the shard of each ticket that is out.
        parked: shards of which no instance is there.
        failures: calls that FFN instances could not compute.
        deaths: FFN instances that were lost with it.
    """

    lane: int
    call: FFNCall
    answers: dict[int, Answer] = field(default_factory=dict)
    owed: dict[Ticket, int] = field(default_factory=dict)
    parked: set[int] = field(default_factory=set)
    failures: int = 0
    deaths: int = 0


@dataclass(eq=False)
class _Target:
    """A member and how it goes with reaching it."""

    member: FFNMember
    peer: Peer | None = None
    retry_at: float = 0.0
    retry_after: float = FIRST_RETRY
    is_suspect: bool = False
    is_dialled: bool = False


@dataclass
class LinkCounts:
    """What went wrong since the start.

    Attributes:
        resent: calls that were asked of another instance, or again of the same one.
        late: answers that did not come in time.
        lost: connections that ended.
    """

    resent: int = 0
    late: int = 0
    lost: int = 0


class WireLink:
    """Sends calls to all shards and adds their answers up; an `FFNLink` for `LaneDriver`.

    Used by one thread, but for `wake` and `use`.

    Attributes:
        counts: what went wrong.
        offsets: for each FFN instance, what its clock is ahead of this one, in nanoseconds, and the round
            trip of the call by which it was measured.
    """

    def __init__(self, endpoint: AttentionEndpoint, num_shards: int, timeline: Timeline) -> None:
        self._endpoint, self._num_shards, self._timeline = endpoint, num_shards, timeline
        self._targets: dict[int, _Target] = {}
        self._news: queue.SimpleQueue[list[FFNMember]] = queue.SimpleQueue()
        self._pending: dict[int, _Pending] = {}
        self._owners: dict[Ticket, _Pending] = {}
        self._slowest = 0.0
        self.counts = LinkCounts()
        self.offsets: dict[int, tuple[int, int]] = {}

    def use(self, members: Sequence[FFNMember]) -> None:
        """These are the FFN instances from now on; from any thread."""
        self._news.put(list(members))
        self.wake()

    def wake(self) -> None:
        self._endpoint.wake()

    def close(self) -> None:
        self._endpoint.close()

    @property
    def reachable(self) -> tuple[int, ...]:
        """FFN instances that are connected."""
        return tuple(number for number, target in self._targets.items() if target.peer is not None)

    def send(self, lane: int, call: FFNCall) -> None:
        pending = self._pending[lane] = _Pending(lane, call)
        self._ask(pending, range(self._num_shards))

    def wait(self, timeout: float | None) -> list[Arrived]:
        self._take_news()
        self._dial()
        until = time.monotonic() + (3600.0 if timeout is None else timeout)
        wake_at = min([until, *(one.retry_at for one in self._targets.values() if one.peer is None)])
        arrived: list[Arrived] = []
        for event in self._endpoint.wait(max(0.0, wake_at - time.monotonic())):
            self._handle(event, arrived)
        return arrived

    def _take_news(self) -> None:
        members = None
        while not self._news.empty():
            members = self._news.get()
        if members is None:
            return
        wanted = {member.instance: member for member in members}
        for number, target in list(self._targets.items()):
            if wanted.get(number) != target.member:
                del self._targets[number]
                if target.peer is not None:
                    # What it owes comes back as `Gone`, and is asked of others.
                    self._endpoint.disconnect(target.peer)
        for number, member in wanted.items():
            if number not in self._targets:
                self._targets[number] = _Target(member)

    def _dial(self) -> None:
        now = time.monotonic()
        for target in self._targets.values():
            if target.peer is None and not target.is_dialled and now >= target.retry_at:
                target.is_dialled = True
                # An attempt that never ends is the wire's to notice; it tells.
                target.retry_at = now + 3600.0
                try:
                    self._endpoint.connect(target.member.address)
                except WireError as error:
                    self._failed_to_reach(target, str(error))

    def _handle(self, event: Event, arrived: list[Arrived]) -> None:
        match event:
            case Answer():
                self._take_answer(event, arrived)
            case Late(ticket=ticket):
                self._be_late(ticket)
            case Failed(ticket=ticket, message=message):
                self._fail(ticket, message)
            case Gone():
                self._lose(event)
            case Joined(peer=peer):
                self._join(peer)
            case Unreachable(address=address, reason=reason):
                for target in self._targets.values():
                    if target.member.address == address and target.peer is None:
                        self._failed_to_reach(target, reason)

    def _take_answer(self, answer: Answer, arrived: list[Arrived]) -> None:
        pending = self._owners.pop(answer.ticket, None)
        if pending is None:
            answer.release()
            return
        self._trust(answer)
        shard = pending.owed.pop(answer.ticket)
        pending.answers[shard] = answer
        if len(pending.answers) == self._num_shards:
            del self._pending[pending.lane]
            self._note_times(pending)
            arrived.append(_add_up(pending))

    def _be_late(self, ticket: Ticket) -> None:
        """A replica is asked instead; where there is none, patience is all that is left."""
        pending = self._owners.get(ticket)
        if pending is None:
            return
        self.counts.late += 1
        target = self._targets.get(ticket.peer.instance)
        if target is not None:
            target.is_suspect = True
        shard = pending.owed[ticket]
        if self._choose(shard, avoid=ticket.peer) is None:
            return
        self._endpoint.forget(ticket)
        self._disown(ticket)
        self.counts.resent += 1
        self._ask(pending, [shard], avoid=ticket.peer)

    def _fail(self, ticket: Ticket, message: str) -> None:
        pending = self._owners.get(ticket)
        if pending is None:
            return
        shard = pending.owed[ticket]
        self._disown(ticket)
        pending.failures += 1
        if pending.failures >= MOST_ATTEMPTS:
            raise EngineError(f"{ticket} failed {pending.failures} times: {message}")
        self.counts.resent += 1
        self._ask(pending, [shard], avoid=ticket.peer)

    def _lose(self, gone: Gone) -> None:
        self.counts.lost += 1
        target = self._targets.get(gone.peer.instance)
        if target is not None and target.peer is gone.peer:
            target.peer = None
            target.retry_at = time.monotonic()
            log.warning("FFN instance %d is gone: %s", gone.peer.instance, gone.reason)
        for ticket in gone.lost:
            pending = self._owners.get(ticket)
            if pending is not None:
                shard = pending.owed[ticket]
                self._disown(ticket)
                pending.deaths += 1
                if pending.deaths >= MOST_DEATHS:
                    raise EngineError(
                        f"{pending.deaths} FFN instances were lost with {ticket}: {gone.reason}"
                    )
                self.counts.resent += 1
                self._ask(pending, [shard])

    def _join(self, peer: Peer) -> None:
        target = self._targets.get(peer.instance)
        if target is None or target.member.epoch != peer.epoch:
            self._endpoint.disconnect(peer)
            return
        target.peer, target.is_dialled, target.is_suspect = peer, False, False
        target.retry_after = FIRST_RETRY
        shard = target.member.shard
        for pending in list(self._pending.values()):
            if shard in pending.parked:
                pending.parked.discard(shard)
                self._ask(pending, [shard])

    def _failed_to_reach(self, target: _Target, reason: str) -> None:
        log.info("FFN instance %d cannot be reached: %s", target.member.instance, reason)
        target.is_dialled = False
        target.retry_at = time.monotonic() + target.retry_after
        target.retry_after = min(2 * target.retry_after, LONGEST_RETRY)

    def _ask(self, pending: _Pending, shards: Sequence[int], avoid: Peer | None = None) -> None:
        """Sends a call to one instance of each of some shards, as far as there is one."""
        peers, asked = [], []
        for shard in shards:
            peer = self._choose(shard, avoid) or self._choose(shard)
            if peer is None:
                pending.parked.add(shard)
            else:
                peers.append(peer)
                asked.append(shard)
        if not peers:
            return
        call = pending.call
        tickets = self._endpoint.push(
            peers, pending.lane, call.layer, call.x, call.expert_ids, call.expert_weights, self._patience
        )
        for ticket, shard in zip(tickets, asked, strict=True):
            pending.owed[ticket] = shard
            self._owners[ticket] = pending

    @property
    def _patience(self) -> float:
        return max(LEAST_PATIENCE, 4 * self._slowest)

    def _choose(self, shard: int, avoid: Peer | None = None) -> Peer | None:
        """The instance of a shard that has the fewest calls to answer, one that is not late if possible."""
        best: tuple[bool, int, int] | None = None
        chosen = None
        for number, target in self._targets.items():
            peer = target.peer
            if target.member.shard != shard or peer is None or peer is avoid:
                continue
            free = self._endpoint.slots_free(peer)
            if free == 0:
                continue
            rank = (target.is_suspect, -free, number)
            if best is None or rank < best:
                best, chosen = rank, peer
        return chosen

    def _disown(self, ticket: Ticket) -> None:
        pending = self._owners.pop(ticket)
        del pending.owed[ticket]

    def _trust(self, answer: Answer) -> None:
        target = self._targets.get(answer.ticket.peer.instance)
        if target is not None:
            target.is_suspect = False
        took = (answer.times.answered_ns - answer.times.pushed_ns) * 1e-9
        self._slowest = max(took, 0.99 * self._slowest)

    def _note_times(self, pending: _Pending) -> None:
        """Where the time of a call went: on the wire, waiting and in the FFN, by the slowest shard."""
        slowest = max(pending.answers.values(), key=lambda answer: answer.times.answered_ns)
        lane, layer, tokens = pending.lane, pending.call.layer, pending.call.x.shape[0]
        now, add = time.monotonic_ns(), self._timeline.add
        for answer in pending.answers.values() if self._timeline.is_recording else (slowest,):
            times, instance = answer.times, answer.ticket.peer.instance
            ahead = self._measure_offset(instance, answer)
            counts = answer is slowest
            arrived, started, finished = (
                stamp - ahead for stamp in (times.arrived_ns, times.started_ns, times.finished_ns)
            )
            add(lane, Stage.WIRE, layer, times.pushed_ns, arrived, tokens, instance, counts=counts)
            add(lane, Stage.WAITING, layer, arrived, started, tokens, instance, counts=counts)
            add(lane, Stage.FFN, layer, started, finished, tokens, instance, counts=counts)
            add(lane, Stage.WIRE, layer, finished, times.answered_ns, tokens, instance, counts=counts)
        # An answer that lies there while another lane computes has waited too.
        add(lane, Stage.WAITING, layer, slowest.times.answered_ns, now, tokens)

    def _measure_offset(self, instance: int, answer: Answer) -> int:
        """What the instance's clock is ahead, by the call that spent the least time on the wire so far."""
        times = answer.times
        out, back = times.arrived_ns - times.pushed_ns, times.answered_ns - times.finished_ns
        known = self.offsets.get(instance)
        if known is None or out + back < known[1]:
            known = self.offsets[instance] = (out - back) // 2, out + back
        return known[0]


def _add_up(pending: _Pending) -> Arrived:
    """The sum of all shards' answers, in their order, in the call's own dtype and on its device."""
    answers = [pending.answers[shard] for shard in sorted(pending.answers)]
    x = pending.call.x
    first = answers[0]
    if len(answers) == 1 and first.partial.dtype == x.dtype and x.device.type == "cpu":
        return Arrived(pending.lane, first.partial, first.release)
    total = first.partial.to(torch.float32, copy=True)
    for answer in answers[1:]:
        total.add_(answer.partial)
    for answer in answers:
        answer.release()
    return Arrived(pending.lane, total.to(x.device, x.dtype), _nothing)


def _nothing() -> None:
    return None

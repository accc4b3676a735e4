"""Continuous batching on one attention instance: which sequences each lane computes, on which card.

All lanes take from one queue, first in, first out. A sequence stays on the card and in the lane that took
it, since its cache is there. It is taken when a card has room for all tokens that it has; so only decoding
ever runs out of room, and then the sequence of that lane and card that came last gives up its cache and is
computed anew later, as in the engine.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush

from step3.plan.simulate.cache import CacheRoom
from step3.plan.simulate.calls import CallTimes
from step3.plan.simulate.lanes import Load
from step3.plan.simulate.requests import Request


class Sequence:
    """A request on its way.

    Attributes:
        arrival, prompt, output: the request's.
        made: output tokens when it joined the lane where it is.
        first, last: when its first and its latest token were made; None before.
        first_made: how many tokens it had at `first`.
        is_whole: it was not met in the middle of its decoding.
        must_prefill: its cache is to be computed here.
        prefill_left: tokens of its cache that are to be computed before it decodes.
        card: which it is on.
        joined, ends: the lane's steps at which it began to decode and at which its last token is made.
        lane: whose it is, while it is in one.
    """

    __slots__ = (
        "arrival",
        "card",
        "ends",
        "first",
        "first_made",
        "is_whole",
        "joined",
        "lane",
        "last",
        "made",
        "must_prefill",
        "output",
        "prefill_left",
        "prompt",
    )

    def __init__(self, request: Request, must_prefill: bool, made: int = 0) -> None:
        self.arrival, self.prompt, self.output = request.arrival, request.prompt, request.output
        self.made = self.first_made = made
        self.is_whole = made == 0
        self.first: float | None = None
        self.last: float | None = None
        self.must_prefill = must_prefill
        self.prefill_left = 0
        self.card = -1
        self.joined = self.ends = -1
        self.lane: LaneBatch | None = None

    @property
    def tokens(self) -> int:
        """Prompt and output so far, when it joined."""
        return self.prompt + self.made


@dataclass
class Outcome:
    """What a lane's step brought."""

    tokens: float = 0.0
    """Output tokens."""
    steady: int = 0
    """Sequences that made one in the lane's step before, too."""
    started: list[Sequence] = field(default_factory=list)
    """Those that made their first one since they joined."""
    finished: list[Sequence] = field(default_factory=list)


class LaneBatch:
    """The sequences of one lane.

    Attributes:
        step: how many steps it has ended.
        since: when its step before the one under way ended, or when it woke.
        size: its sequences, prefills included.
    """

    def __init__(self, cards: int) -> None:
        self.step = 0
        self.since = 0.0
        self.size = 0
        self.decoding = [0] * cards
        self.contexts = [0.0] * cards
        self.prefills: list[deque[Sequence]] = [deque() for _ in range(cards)]
        self.members: list[dict[Sequence, None]] = [{} for _ in range(cards)]
        self.chunks: list[tuple[Sequence, int]] = []
        self.fresh: list[Sequence] = []
        self._ends: list[tuple[int, int, Sequence]] = []
        self._number = 0

    def seats(self, card: int) -> int:
        """Sequences on a card."""
        return len(self.members[card])

    def decode(self, sequence: Sequence, steps: int) -> None:
        """Let a sequence take part in decoding, for so many more steps."""
        card = sequence.card
        sequence.joined, sequence.ends = self.step, self.step + steps
        self.decoding[card] += 1
        self.contexts[card] += sequence.tokens
        self._number += 1
        heappush(self._ends, (sequence.ends, self._number, sequence))

    def due(self) -> list[Sequence]:
        """Those whose last token was made in the step that ended, taken off the list."""
        due = []
        while self._ends and self._ends[0][0] <= self.step:
            end, _, sequence = heappop(self._ends)
            if sequence.lane is self and sequence.ends == end:
                sequence.ends = -1
                due.append(sequence)
        return due


class Batching:
    """All sequences of one attention instance.

    Args:
        cards: its cards.
        lanes: its lanes.
        seats: most sequences of one lane on one card.
        room: cache of a card.
        times: seconds of each call.
        chunk: prompt tokens that a card computes in a lane's step beside decoding.
        tokens_per_step: output tokens of a sequence and step, on average.
        copies: attention instances for which this one stands.
        headroom: share of it that stays free when a sequence is taken, for those in decoding to grow into.
        step_tokens: tokens of a lane's step on a card at most, prompts getting what decoding leaves; None
            for no end but `chunk`.

    Attributes:
        lanes: its lanes.
        size: sequences in its lanes.
        cache_tokens: tokens in its caches.
        waiting: sequences that wait for a place.
        available: whether the router sends it requests.
        stopped: whether it is dead.
        preempted: how often a sequence gave up its cache.
        short_of_cache: how often one waited for cache though there was a seat.
    """

    def __init__(
        self,
        cards: int,
        lanes: int,
        seats: int,
        room: CacheRoom,
        times: CallTimes,
        chunk: int,
        tokens_per_step: float = 1.0,
        copies: int = 1,
        headroom: float = 0.0,
        step_tokens: int | None = None,
    ) -> None:
        self.lanes = [LaneBatch(cards) for _ in range(lanes)]
        self.size = 0
        self.cache_tokens = 0.0
        self.waiting: deque[Sequence] = deque()
        self.waiting_bytes = 0.0
        self.available = True
        self.stopped = False
        self.preempted = 0
        self.short_of_cache = 0
        self._cards, self._seats, self._room, self._times = cards, seats, room, times
        self._chunk, self._per_step, self._copies = chunk, tokens_per_step, copies
        self._step_tokens = step_tokens
        self._open_room = room.room * (1 - headroom)
        self._held_sequences = [0] * cards
        self._held_tokens = [0.0] * cards

    @property
    def cache_share(self) -> float:
        """Share of its cards' cache that is taken; 0 where the room has no end."""
        room = self._room.room * self._cards
        return self._room.taken(self.size, self.cache_tokens) / room if room else 1.0

    @property
    def load(self) -> float:
        """How full it is with what runs and waits, by cache or by seats; the router takes the least."""
        capacity = self._room.room * self._cards
        waiting = self.waiting_bytes / capacity if capacity else 1.0
        seats = (self.size + len(self.waiting)) / (self._seats * self._cards * len(self.lanes))
        return max(self.cache_share + waiting, seats)

    def ever_fits(self, request: Request) -> bool:
        """Whether a card has room for the request alone, to its end."""
        return self._room.taken(1, request.prompt + request.output) <= self._room.room

    def enqueue(self, sequence: Sequence, first: bool = False) -> None:
        """Put a sequence at the end of the queue, or at its beginning."""
        if first:
            self.waiting.appendleft(sequence)
        else:
            self.waiting.append(sequence)
        self.waiting_bytes += self._room.taken(1, sequence.tokens)

    def place(self, sequence: Sequence, lane: LaneBatch) -> bool:
        """Put a sequence that is in decoding already on a card of this lane; False if none has room."""
        card = self._free_card(sequence, lane)
        if card is None:
            return False
        self._join(sequence, lane, card)
        return True

    def end_step(self, lane: LaneBatch) -> Outcome:
        """Account for a step of a lane that just ended."""
        lane.step += 1
        outcome = Outcome(started=lane.fresh)
        lane.fresh = []
        for card in range(self._cards):
            count = lane.decoding[card]
            outcome.tokens += count * self._per_step
            outcome.steady += count
            lane.contexts[card] += count * self._per_step
            self._grow(card, count * self._per_step)
        outcome.steady -= len(outcome.started)
        for sequence, count in lane.chunks:
            sequence.prefill_left -= count
            if not sequence.prefill_left:
                lane.prefills[sequence.card].remove(sequence)
                sequence.made += 1
                self._grow(sequence.card, 1)
                outcome.tokens += 1
                outcome.started.append(sequence)
                if sequence.made < sequence.output:
                    lane.decode(sequence, math.ceil((sequence.output - sequence.made) / self._per_step))
                else:
                    self._leave(sequence, sequence.tokens)
                    outcome.finished.append(sequence)
        lane.chunks = []
        for sequence in lane.due():
            self._stop_decoding(sequence, lane)
            outcome.finished.append(sequence)
        return outcome

    def next_load(self, lane: LaneBatch) -> Load | None:
        """What a lane computes next; None if it has nothing to do."""
        if self.stopped:
            return None
        preempted = self.preempted
        for card in range(self._cards):
            self._relieve(lane, card)
        if self.waiting and preempted == self.preempted:
            self._admit(lane)
        if not lane.size:
            return None
        return self._load(lane)

    def _load(self, lane: LaneBatch) -> Load | None:
        chunks: dict[int, list[tuple[int, float]]] = {}
        prompt = 0
        for card in range(self._cards):
            left = self._prompt_tokens(lane.decoding[card])
            for sequence in lane.prefills[card]:
                count = min(sequence.prefill_left, left)
                if not count:
                    break
                left -= count
                prompt += count
                lane.chunks.append((sequence, count))
                before = sequence.tokens - sequence.prefill_left
                chunks.setdefault(card, []).append((count, float(before)))
        decoding, contexts = lane.decoding, lane.contexts
        busiest = {max(range(self._cards), key=contexts.__getitem__)}
        busiest.add(max(range(self._cards), key=decoding.__getitem__))
        busiest.update(chunks)
        slowest: list[float] = []
        rows = 0.0
        for card in busiest:
            parts = chunks.get(card, ())
            seconds = self._times.attention(decoding[card], contexts[card], parts)
            slowest = list(map(max, slowest, seconds)) if slowest else seconds
            rows = max(rows, decoding[card] + sum(count for count, _ in parts) / self._times.width)
        total = sum(decoding) + prompt / self._times.width
        if not total:
            return None
        return Load(slowest, self._times.head(max(*decoding, 1)), rows, total * self._copies)

    def _prompt_tokens(self, decoding: int) -> int:
        """Prompt tokens that a card may compute in a step."""
        if self._step_tokens is None:
            return self._chunk
        return min(self._chunk, max(self._step_tokens - decoding * self._times.width, 0))

    def _relieve(self, lane: LaneBatch, card: int) -> None:
        """Take back the cache of those that came last until the card holds what is decoded next."""
        room = self._room
        while lane.members[card] and (
            room.taken(self._held_sequences[card], self._held_tokens[card]) > room.room
        ):
            sequence = next(reversed(lane.members[card]))
            self.preempted += 1
            self._evict(sequence, lane)
            self.enqueue(sequence, first=True)

    def _evict(self, sequence: Sequence, lane: LaneBatch) -> None:
        """Take a sequence out of its lane, with what it has made, its cache lost."""
        card = sequence.card
        if sequence in lane.prefills[card]:
            lane.prefills[card].remove(sequence)
            self._leave(sequence, sequence.tokens)
        else:
            made = self._made(sequence, lane)
            tokens = sequence.prompt + made
            lane.decoding[card] -= 1
            lane.contexts[card] -= tokens
            sequence.ends = -1
            if made > sequence.made:
                sequence.last = lane.since
            elif sequence in lane.fresh:
                lane.fresh.remove(sequence)
            self._leave(sequence, tokens)
            sequence.made = min(int(made), sequence.output - 1)
        sequence.must_prefill = True

    def _made(self, sequence: Sequence, lane: LaneBatch) -> float:
        return sequence.made + (lane.step - sequence.joined) * self._per_step

    def _stop_decoding(self, sequence: Sequence, lane: LaneBatch) -> None:
        card, tokens = sequence.card, sequence.prompt + self._made(sequence, lane)
        lane.decoding[card] -= 1
        lane.contexts[card] -= tokens
        self._leave(sequence, tokens)

    def _leave(self, sequence: Sequence, tokens: float) -> None:
        lane, card = sequence.lane, sequence.card
        assert lane is not None
        del lane.members[card][sequence]
        lane.size -= 1
        sequence.lane = None
        self.size -= 1
        self._held_sequences[card] -= 1
        self._grow(card, -tokens)

    def _admit(self, lane: LaneBatch) -> None:
        fair = -(-(self.size + len(self.waiting)) // len(self.lanes))
        while self.waiting and lane.size < fair:
            sequence = self.waiting[0]
            card = self._free_card(sequence, lane)
            if card is None:
                return
            self.waiting.popleft()
            self.waiting_bytes -= self._room.taken(1, sequence.tokens)
            self._join(sequence, lane, card)

    def _free_card(self, sequence: Sequence, lane: LaneBatch) -> int | None:
        """Of the cards with room, the one with the fewest of the lane's sequences, then the least cache."""
        seated = [card for card in range(self._cards) if lane.seats(card) < self._seats]
        free = [card for card in seated if self._has_room(sequence, card)]
        if seated and not free:
            self.short_of_cache += 1
        if not free:
            return None
        return min(free, key=lambda card: (lane.seats(card), self._held_tokens[card]))

    def _has_room(self, sequence: Sequence, card: int) -> bool:
        held = self._held_sequences[card]
        taken = self._room.taken(held + 1, self._held_tokens[card] + sequence.tokens + 1)
        return taken <= (self._open_room if held else self._room.room)

    def _join(self, sequence: Sequence, lane: LaneBatch, card: int) -> None:
        sequence.lane, sequence.card = lane, card
        lane.members[card][sequence] = None
        lane.size += 1
        self.size += 1
        self._held_sequences[card] += 1
        self._grow(card, sequence.tokens)
        if sequence.must_prefill:
            sequence.prefill_left = sequence.tokens
            lane.prefills[card].append(sequence)
        else:
            lane.decode(sequence, math.ceil((sequence.output - sequence.made) / self._per_step))
            lane.fresh.append(sequence)

    def _grow(self, card: int, tokens: float) -> None:
        self._held_tokens[card] += tokens
        self.cache_tokens += tokens

    def lose(self) -> list[Sequence]:
        """Give up all sequences in the lanes, their caches lost, oldest first."""
        lost = []
        for lane in self.lanes:
            for members in lane.members:
                for sequence in list(members):
                    self._evict(sequence, lane)
                    lost.append(sequence)
            lane.chunks, lane.fresh = [], []
        return sorted(lost, key=lambda sequence: sequence.arrival)

    def take_waiting(self) -> list[Sequence]:
        """Give up the queue."""
        waiting, self.waiting, self.waiting_bytes = list(self.waiting), deque(), 0.0
        return waiting

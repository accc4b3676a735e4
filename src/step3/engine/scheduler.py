"""Which sequences compute which tokens in a step: continuous batching with chunked prefill.

Decodes go first, then running prefills, then waiting sequences; in each group by priority, then arrival. A
sequence is admitted only when there are blocks for all tokens that it has, so only decodes ever run out of
blocks; then the sequence that goes last gives up its blocks and is computed anew later. So does one of lower
priority when one of higher priority waits and does not fit.
"""

from __future__ import annotations

import sys
from bisect import insort
from collections.abc import Callable, Iterator
from typing import NamedTuple

from step3.engine.kv_cache import KVCache
from step3.engine.request import Request, Sequence, Status


class Scheduled(NamedTuple):
    """What one sequence computes in a step: its tokens from `start` on, then its drafts.

    Attributes:
        num_tokens: tokens and drafts.
        is_last: the sequence's last token is among them, so that its next one is sampled.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    is_last: bool


class WaitingQueue:
    """Sequences that wait, in the order in which they go. All lanes of an instance take from one queue."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def add(self, sequence: Sequence) -> None:
        """Puts a sequence in its place."""
        sequence.status = Status.WAITING
        insort(self._sequences, sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        self._sequences.remove(sequence)


class Scheduler:
    """The running sequences of one lane, and the rule by which they share its steps."""

    def __init__(
        self,
        cache: KVCache,
        waiting: WaitingQueue,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        draft: Callable[[list[Sequence]], None] | None = None,
        share: Callable[[], int] | None = None,
    ) -> None:
        """
        Args:
            draft: fills in `drafts` of the sequences that are about to decode.
            share: sequences that may run here before others of the instance's lanes have as many; None for
                as many as there are seats.
        """
        self._cache, self._waiting, self._draft, self._share = cache, waiting, draft, share
        self._max_tokens, self._max_model_len = max_num_batched_tokens, max_model_len
        self._seats = list(range(max_num_seqs))[::-1]
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    def schedule(self) -> list[Scheduled]:
        """The next step; empty if nothing can be computed."""
        self._give_way()
        decodes: list[Sequence] = []
        prefills: list[Sequence] = []
        for sequence in self.running:
            is_decoding = sequence.num_computed == len(sequence.tokens) - 1
            (decodes if is_decoding else prefills).append(sequence)
        if self._draft:
            self._draft(decodes)
        step: list[Scheduled] = []
        budget = self._max_tokens - len(decodes)
        preemptions = self.num_preemptions
        for sequence in decodes:
            if sequence.status is Status.RUNNING:
                budget = self._decode(sequence, step, budget)
        for sequence in prefills:
            if budget > 0 and sequence.status is Status.RUNNING:
                step.append(chunk := _chunk(sequence, budget))
                budget -= chunk.num_tokens
        # Who was just thrown out must not come straight back in.
        if self.num_preemptions == preemptions:
            self._admit(step, budget)
        return step

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and frees all that it holds."""
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self._vacate(sequence)
        elif sequence.status is Status.WAITING:
            self._waiting.remove(sequence)
        sequence.status = Status.FINISHED

    def _give_way(self) -> None:
        """Preempts those of lower priority while the one that waits first does not fit beside them."""
        first = next((sequence for sequence in self._waiting if _is_ready(sequence)), None)
        while (
            first is not None
            and self.running
            and self.running[-1].request.priority > first.request.priority
            and not (self._seats and self._cache.fits(first))
        ):
            self._preempt(self.running[-1])

    def _decode(self, sequence: Sequence, step: list[Scheduled], budget: int) -> int:
        """Puts the sequence's last token and its drafts into the step; returns the budget that is left."""
        known = len(sequence.tokens)
        if sequence.drafts:
            del sequence.drafts[max(0, min(budget, self._max_model_len - known)) :]
            if not self._cache.grow(sequence, known + len(sequence.drafts)):
                sequence.drafts = []
        if known > len(sequence.blocks) * self._cache.block_size and not self._make_room(sequence):
            return budget
        drafts = len(sequence.drafts)
        step.append(Scheduled(sequence, known - 1, 1 + drafts, True))
        return budget - drafts

    def _make_room(self, sequence: Sequence) -> bool:
        """Preempts those that go last until the sequence can decode; False if it was itself the last."""
        while not self._cache.grow(sequence, len(sequence.tokens)):
            last = self.running[-1]
            self._preempt(last)
            if last is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._vacate(sequence)
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self._waiting.add(sequence)

    def _vacate(self, sequence: Sequence) -> None:
        self._cache.release(sequence)
        self._seats.append(sequence.seat)
        sequence.seat, sequence.num_tabled = -1, 0
        sequence.drafts, sequence.features = [], {}

    def _admit(self, step: list[Scheduled], budget: int) -> None:
        if not self._seats or budget <= 0:
            return
        share = sys.maxsize if self._share is None else self._share()
        for sequence in list(self._waiting):
            if budget <= 0 or len(self.running) >= share:
                return
            if not _is_ready(sequence):
                continue
            if not self._seats or not self._cache.admit(sequence):
                # First in, first out: nobody overtakes the one that does not fit.
                return
            self._waiting.remove(sequence)
            sequence.status = Status.RUNNING
            sequence.seat = self._seats.pop()
            insort(self.running, sequence, key=_order)
            step.append(chunk := _chunk(sequence, budget))
            budget -= chunk.num_tokens


def _order(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.order


def _chunk(sequence: Sequence, budget: int) -> Scheduled:
    count = min(budget, len(sequence.tokens) - sequence.num_computed)
    is_last = sequence.num_computed + count == len(sequence.tokens)
    return Scheduled(sequence, sequence.num_computed, count, is_last)


def _is_ready(sequence: Sequence) -> bool:
    """Not while the grammar is compiled, nor while the first answer computes the prompt for all of them."""
    request: Request = sequence.request
    if request.grammar is not None:
        return False
    return sequence is request.sequences[0] or request.is_prompt_computed

"""When drafts pay: each row of a step costs time, each accepted draft saves a part of a step.

Drafts come from `prompt_lookup` and are verified by `sampler.sample`, which takes exactly the tokens that it
would have chosen without them. What is decided here is only how many to try.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from step3.engine.sampling.prompt_lookup import PromptLookup

_MEMORY = 0.95
"""Weight of the past when a new step or draft is counted."""
_FADING = 0.99
_REST = 8
"""Steps without a look-up after one that did not pay."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step with `rows` rows: `fixed + per_row * rows`."""

    fixed: float
    per_row: float

    def of(self, rows: int) -> float:
        return self.fixed + self.per_row * rows


class StepTimes:
    """Learns what a step and a row cost from steps as they come, the latest counting most.

    A row's cost is what one step takes longer than the step before it for each row more: what changes slowly,
    as contexts grow, does not touch it. While rows do not change nothing is learned of it; `fade` then makes
    drafts be tried again some time, and their cost measured anew.
    """

    def __init__(self) -> None:
        self._rows, self._seconds = 0, 0.0
        self._mean_rows = self._mean_seconds = 0.0
        self._squares = self._products = 0.0

    def observe(self, rows: int, seconds: float) -> None:
        """Counts a step that only decoded."""
        if not self._rows:
            self._mean_rows, self._mean_seconds = float(rows), seconds
        elif rows != self._rows:
            more, longer = rows - self._rows, seconds - self._seconds
            self._squares = _MEMORY * self._squares + more * more
            self._products = _MEMORY * self._products + more * longer
        self._rows, self._seconds = rows, seconds
        self._mean_rows += (1 - _MEMORY) * (rows - self._mean_rows)
        self._mean_seconds += (1 - _MEMORY) * (seconds - self._mean_seconds)

    def fade(self) -> None:
        """Makes a row seem a little cheaper than it was."""
        self._products *= _FADING

    def estimate(self) -> StepTime:
        """What the next step is expected to take; nothing costs anything before the first one."""
        if not self._rows:
            return StepTime(0.0, 0.0)
        slope = self._products / self._squares if self._squares else 0.0
        per_row = min(max(0.0, slope), self._mean_seconds / self._mean_rows)
        return StepTime(self._mean_seconds - per_row * self._mean_rows, per_row)


def draft_lengths(acceptance: Sequence[float], proposed: Sequence[int], step: StepTime) -> list[int]:
    """How many drafts of each sequence make tokens come fastest.

    A draft's row takes `step.per_row` seconds and gives a token with the chance that it and those before it
    are right. It is worth its row if that is more tokens a second than the step gives without it, so drafts
    are taken from the likeliest on until one is not.

    Args:
        acceptance: the chance that a draft is right if those before it are, for each sequence.
        proposed: drafts that there are for each sequence.
        step: what a step takes; a sequence without drafts is one row and one token.

    Returns:
        The number of drafts to try for each sequence.
    """
    lengths = [0] * len(proposed)
    tokens, seconds = float(len(proposed)), step.of(len(proposed))
    waiting = [
        (-chance, i) for i, (chance, most) in enumerate(zip(acceptance, proposed, strict=True)) if most
    ]
    heapq.heapify(waiting)
    while waiting:
        worst, i = heapq.heappop(waiting)
        if -worst * seconds < step.per_row * tokens:
            break
        lengths[i] += 1
        tokens -= worst
        seconds += step.per_row
        if lengths[i] < proposed[i]:
            heapq.heappush(waiting, (worst * acceptance[i], i))
    return lengths


class Acceptance:
    """How often drafts are right when those before them are, the latest counting most."""

    def __init__(self) -> None:
        self._tried = self._right = 0.0

    def add(self, is_right: bool) -> None:
        self._tried = _MEMORY * self._tried + 1
        self._right = _MEMORY * self._right + is_right

    def chance(self, prior: float) -> float:
        """The chance that the next one is right; `prior` counts as much as two drafts seen."""
        return (self._right + 2 * prior) / (self._tried + 2)


class DraftSource:
    """Proposes drafts for one sequence, and learns how often they are right, tried or not.

    Args:
        lookup: where drafts come from.
        tokens: prompt and output, the list that grows with the sequence.
        all_sources: of all sequences, to which this one's drafts are added.
    """

    def __init__(self, lookup: PromptLookup, tokens: Sequence[int], all_sources: Acceptance) -> None:
        self._lookup, self._tokens, self._all_sources = lookup, tokens, all_sources
        self._own = Acceptance()
        self._start, self._pending = 0, list[int]()

    def propose(self, limit: int) -> list[int]:
        """Up to `limit` drafts."""
        self._settle()
        drafts = self._lookup.draft(limit)
        if not self._pending:
            self._start, self._pending = len(self._tokens), drafts
        return drafts

    @property
    def chance(self) -> float:
        """The chance that a draft is right if those before it are."""
        return self._own.chance(self._all_sources.chance(0.5))

    def _settle(self) -> None:
        """Compares what was proposed some time ago with what came, up to the first that is wrong."""
        came = self._tokens[self._start : self._start + len(self._pending)]
        for draft, token in zip(self._pending, came, strict=False):
            is_right = draft == token
            self._own.add(is_right)
            self._all_sources.add(is_right)
            if not is_right:
                self._pending = []
                return
        self._start += len(came)
        self._pending = self._pending[len(came) :]


@dataclass(frozen=True)
class SpeculationCounts:
    """What came of drafts since the start.

    Attributes:
        drafted: drafts that were tried.
        accepted: those that were right.
    """

    drafted: int = 0
    accepted: int = 0

    @property
    def acceptance(self) -> float:
        """Part of the drafts that were right, 0 to 1."""
        return self.accepted / self.drafted if self.drafted else 0.0


class Speculation:
    """Decides, step by step, how many drafts each sequence tries; none where drafts do not pay.

    Args:
        limit: drafts of a sequence at most.
        min_match, max_match: see `PromptLookup`.
    """

    def __init__(self, limit: int, min_match: int = 3, max_match: int = 16) -> None:
        self._limit, self._min, self._max = limit, min_match, max_match
        self._times = StepTimes()
        self._acceptance = Acceptance()
        self._resting = 0
        self.counts = SpeculationCounts()

    def source(self, tokens: Sequence[int]) -> DraftSource:
        """What proposes drafts for a sequence with these tokens."""
        return DraftSource(PromptLookup(tokens, self._min, self._max), tokens, self._acceptance)

    def draft(self, sources: Sequence[DraftSource]) -> list[list[int]]:
        """The drafts to try in the next step, for each of the sequences that decode."""
        if self._resting:
            self._resting -= 1
            return [[] for _ in sources]
        proposed = [source.propose(self._limit) for source in sources]
        lengths = draft_lengths(
            [source.chance for source in sources], list(map(len, proposed)), self._times.estimate()
        )
        if any(proposed) and not any(lengths):
            self._resting = _REST
            self._times.fade()
        return [drafts[:length] for drafts, length in zip(proposed, lengths, strict=True)]

    def observe(self, rows: int, seconds: float, drafted: int, accepted: int) -> None:
        """Learns from a step that only decoded.

        Args:
            rows: of all sequences, drafts included.
            seconds: that the step took.
            drafted: drafts among its rows.
            accepted: drafts that were right.
        """
        self._times.observe(rows, seconds)
        counts = self.counts
        self.counts = SpeculationCounts(counts.drafted + drafted, counts.accepted + accepted)

"""What an engine counts: how full it is, how fast it goes, and how long requests wait."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, deque
from dataclasses import dataclass

from step3.engine.request import Request, Sequence
from step3.engine.sampling.speculation import SpeculationCounts

# Seconds; the steps that operators' dashboards know from other engines.
FIRST_TOKEN_BOUNDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
PER_TOKEN_BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3),
    *(0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0),
)
RATE_WINDOW = 10.0
"""Seconds over which tokens/s are averaged."""


@dataclass(frozen=True)
class Histogram:
    """How often a value lay in each range.

    Attributes:
        bounds: upper bounds, inclusive and ascending.
        counts: one more than bounds; the last counts what is over all bounds.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """0 where nothing was counted."""
        return self.sum / self.count if self.count else 0.0


@dataclass(frozen=True)
class Statistics:
    """How an engine is doing; counters run since its start.

    Attributes:
        waiting, running: sequences.
        kv_cache_usage: part of the KV blocks that running sequences hold, 0 to 1.
        prefix_cache_queries, prefix_cache_hits: tokens looked for in the prefix cache, and found.
        computed_tokens: tokens that went through the network, prompts and recomputation included.
        prompt_tokens, generation_tokens: of requests with a first token, and tokens generated.
        generation_tokens_per_second: over the last ten seconds.
        speculation: drafts that were tried, and those that were right.
        preemptions: sequences that gave up their blocks and were computed anew.
        finished: requests by finish reason.
        time_to_first_token: seconds from arrival, for each answer.
        time_per_output_token: mean seconds between the tokens of each finished answer.
        request_time: seconds from arrival to the end, for each request.
    """

    waiting: int
    running: int
    kv_cache_usage: float
    prefix_cache_queries: int
    prefix_cache_hits: int
    computed_tokens: int
    prompt_tokens: int
    generation_tokens: int
    generation_tokens_per_second: float
    speculation: SpeculationCounts
    preemptions: int
    finished: dict[str, int]
    time_to_first_token: Histogram
    time_per_output_token: Histogram
    request_time: Histogram

    @property
    def prefix_cache_hit_rate(self) -> float:
        """Part of the looked-for tokens that were found, 0 to 1."""
        return self.prefix_cache_hits / self.prefix_cache_queries if self.prefix_cache_queries else 0.0


class _Counts:
    """A histogram that grows."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds, self._counts, self._sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def freeze(self) -> Histogram:
        return Histogram(self._bounds, tuple(self._counts), self._sum)


class StatisticsRecorder:
    """Counts as the engine goes."""

    def __init__(self) -> None:
        self._first_token = _Counts(FIRST_TOKEN_BOUNDS)
        self._per_token = _Counts(PER_TOKEN_BOUNDS)
        self._request = _Counts(FIRST_TOKEN_BOUNDS)
        self._finished: Counter[str] = Counter()
        self._prompt_tokens = self._generation_tokens = 0
        self._recent: deque[tuple[float, int]] = deque()

    def record_step(self, num_tokens: int, begun: list[Sequence]) -> None:
        """Counts the new tokens of a step, and the sequences that had their first ones in it."""
        self._generation_tokens += num_tokens
        for sequence in begun:
            if sequence.first_token_time is not None:
                self._first_token.add(sequence.first_token_time - sequence.request.arrival_time)
            if sequence.choice == 0:
                self._prompt_tokens += len(sequence.request.prompt_token_ids)
        now = time.monotonic()
        self._recent.append((now, num_tokens))
        while self._recent[0][0] < now - RATE_WINDOW:
            self._recent.popleft()

    def record_finished(self, request: Request) -> None:
        """Counts a request that has ended."""
        for sequence in request.sequences:
            first, last, tokens = (
                sequence.first_token_time,
                sequence.last_token_time,
                sequence.num_output_tokens,
            )
            if first is not None and last is not None and tokens > 1:
                self._per_token.add((last - first) / (tokens - 1))
        self._finished[request.sequences[0].finish_reason or "abort"] += 1
        self._request.add(time.monotonic() - request.arrival_time)

    def snapshot(
        self,
        *,
        waiting: int,
        running: int,
        kv_cache_usage: float,
        prefix_queried: int,
        prefix_found: int,
        preemptions: int,
        computed_tokens: int,
        speculation: SpeculationCounts,
    ) -> Statistics:
        """Everything as it is now."""
        now = time.monotonic()
        recent = sum(tokens for then, tokens in self._recent if then >= now - RATE_WINDOW)
        return Statistics(
            waiting=waiting,
            running=running,
            kv_cache_usage=kv_cache_usage,
            prefix_cache_queries=prefix_queried,
            prefix_cache_hits=prefix_found,
            computed_tokens=computed_tokens,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            generation_tokens_per_second=recent / RATE_WINDOW,
            speculation=speculation,
            preemptions=preemptions,
            finished=dict(self._finished),
            time_to_first_token=self._first_token.freeze(),
            time_per_output_token=self._per_token.freeze(),
            request_time=self._request.freeze(),
        )

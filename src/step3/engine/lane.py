"""A lane: schedules a batch, sends it through the layers, samples, and notes what came of it; then again.

A lane's step is a generator, as the decoder is: it yields FFN calls and is resumed with their answers. The
monolith answers each at once; with FFNs elsewhere, other lanes compute while one waits.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import NamedTuple

import torch
from torch import Tensor

from step3.engine.batch import Batch, BatchBuilder
from step3.engine.decoding import Decoded, StepDecoder
from step3.engine.drafter import Drafter
from step3.engine.kv_cache import KVCache
from step3.engine.progress import advance
from step3.engine.request import Sequence, Status
from step3.engine.sampling.logprobs import prompt_logprobs
from step3.engine.sampling.sampler import SamplingBatch, sample, sample_likeliest
from step3.engine.scheduler import Scheduled, Scheduler
from step3.ffn.call import FFNCall

PROMPT_ROWS_AT_ONCE = 256
"""Prompt tokens whose logits are in memory together."""


class StepResult(NamedTuple):
    """What came of a step.

    Attributes:
        advanced: sequences that have new tokens, those that ended included.
        begun: those of them that have their first ones.
        ended: those of them that have ended.
        num_tokens: new tokens of all.
    """

    advanced: list[Sequence]
    begun: list[Sequence]
    ended: list[Sequence]
    num_tokens: int

    @classmethod
    def merged(cls, results: list[StepResult]) -> StepResult:
        """What came of several steps."""
        return cls(
            [sequence for result in results for sequence in result.advanced],
            [sequence for result in results for sequence in result.begun],
            [sequence for result in results for sequence in result.ended],
            sum(result.num_tokens for result in results),
        )


NOTHING = StepResult([], [], [], 0)


class Lane:
    """One of the micro-batches of an attention instance.

    Attributes:
        scheduler: its running sequences.
        drafter: fills in the drafts of what `scheduler` schedules, or None.
        num_tokens: computed in all steps.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        cache: KVCache,
        builder: BatchBuilder,
        decoder: StepDecoder,
        device: torch.device,
        drafter: Drafter | None = None,
    ) -> None:
        self.scheduler = scheduler
        self._cache, self._builder, self._decoder = cache, builder, decoder
        self._device, self.drafter = device, drafter
        self._sampling = SamplingBatch([], device)
        self._sampled: list[Sequence] = []
        self._leaving: list[Sequence] = []
        self._is_stepping = False
        self.num_tokens = 0

    def step(self) -> Generator[FFNCall, Tensor, StepResult]:
        """One pass through all layers; of an empty batch where there is nothing to compute."""
        step = self.scheduler.schedule()
        if not step:
            return NOTHING
        self._is_stepping = True
        try:
            return (yield from self._compute(step))
        finally:
            self._is_stepping = False
            for sequence in self._leaving:
                self.scheduler.finish(sequence)
            self._leaving.clear()

    def _compute(self, step: list[Scheduled]) -> Generator[FFNCall, Tensor, StepResult]:
        started = time.perf_counter()
        drafted = [len(scheduled.sequence.drafts) for scheduled in step] if self.drafter else []
        batch = self._builder.build(step)
        last = [scheduled for scheduled in step if scheduled.is_last]
        sequences = [scheduled.sequence for scheduled in last]
        if sequences != self._sampled:
            self._sampling = SamplingBatch([sequence.sampling for sequence in sequences], self._device)
            self._sampled = sequences
        scores_prompts = any(scheduled.sequence.scores_prompt for scheduled in step)
        decoded = yield from self._decoder.decode(
            batch, is_greedy=self._sampling.is_greedy, keeps_hidden=scores_prompts
        )
        if decoded.hidden is not None:
            self._score_prompts(step, batch, decoded.hidden)
        if len(last) < len(step):
            for sequence, start, num_tokens, is_last in step:
                if not is_last:
                    sequence.num_computed = start + num_tokens
                    self._cache.commit(sequence)
        result = self._sample(last, decoded) if last else NOTHING
        self.num_tokens += len(batch.tokens)
        if self.drafter and all(
            one.num_tokens == 1 + drafts for one, drafts in zip(step, drafted, strict=True)
        ):
            seconds = time.perf_counter() - started
            accepted = result.num_tokens - len(result.advanced)
            self.drafter.observe(len(batch.tokens), seconds, sum(drafted), accepted)
        return result

    def abort(self, sequence: Sequence) -> None:
        """Frees what the sequence holds: at once, or as soon as a step that writes to it has ended."""
        if self._is_stepping and sequence.status is Status.RUNNING:
            self._leaving.append(sequence)
        else:
            self.scheduler.finish(sequence)

    def _sample(self, last: list[Scheduled], decoded: Decoded) -> StepResult:
        """Gives the sequences whose last tokens were computed their next ones."""
        sequences = self._sampled
        drafts = [sequence.drafts for sequence in sequences]
        given = drafts if any(drafts) else None
        if decoded.tokens is not None:
            sampled = sample_likeliest(decoded.tokens, given)
        else:
            assert decoded.logits is not None, "whatever is scored has logits or tokens"
            sampled = sample(decoded.logits, self._sampling, given)
        now = time.monotonic()
        begun: list[Sequence] = []
        ended: list[Sequence] = []
        num_tokens = 0
        for scheduled, tokens, logprobs in zip(last, sampled.token_ids, sampled.logprobs, strict=True):
            sequence, start, num_computed, _ = scheduled
            num_tokens += len(tokens)
            # Drafts that were accepted are computed; the token behind them is not yet.
            sequence.num_computed = start + num_computed - len(sequence.drafts) + len(tokens) - 1
            if sequence.drafts:
                sequence.drafts = []
            if sequence.first_token_time is None:
                sequence.request.is_prompt_computed = True
                begun.append(sequence)
            has_ended = advance(sequence, tokens, logprobs, now)
            self._cache.commit(sequence)
            if has_ended:
                self.scheduler.finish(sequence)
                ended.append(sequence)
        return StepResult(sequences, begun, ended, num_tokens)

    def _score_prompts(self, step: list[Scheduled], batch: Batch, hidden: Tensor) -> None:
        """Log-probabilities of the prompt tokens behind those computed, for the requests that want them."""
        for (sequence, first, num_tokens, _), row in zip(step, batch.starts, strict=True):
            if not sequence.scores_prompt:
                continue
            request = sequence.request
            # A prompt that is computed anew after a preemption has some already.
            start = max(first, len(request.prompt_logprobs))
            end = min(first + num_tokens, len(request.prompt_token_ids) - 1)
            for begin in range(start, end, PROMPT_ROWS_AT_ONCE):
                stop = min(end, begin + PROMPT_ROWS_AT_ONCE)
                rows = hidden[row + begin - first : row + stop - first]
                targets = torch.tensor(request.prompt_token_ids[begin + 1 : stop + 1], device=self._device)
                count = request.params.prompt_logprobs or 0
                request.prompt_logprobs += prompt_logprobs(self._decoder.logits(rows), targets, count)

"""A request's outputs, put together from what instances send of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from step3.cluster.packing import unpack_logprobs
from step3.engine.detokenizer import TokenTable
from step3.engine.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from step3.engine.request import Request
from step3.engine.sampling.params import RequestOutputKind, SamplingParams


@dataclass(eq=False)
class _Answer:
    """All of an answer so far."""

    pieces: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    cumulative: float = 0.0
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class OutputCollector:
    """Makes the outputs of one request, in vLLM's shapes."""

    def __init__(self, request: Request, params: SamplingParams, table: TokenTable) -> None:
        self._request, self._table = request, table
        self._has_logprobs = params.logprobs is not None
        self._answers = [_Answer() for _ in range(params.n)]
        self._cached: int | None = None
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        self._preemptions = 0
        self._first: float | None = None
        self._last: float | None = None

    def take(self, message: Mapping[str, Any], kind: RequestOutputKind) -> RequestOutput | None:
        """What a message gives: what is new in it, or all so far; None where only the whole is wanted, and
        this is not the end."""
        now = time.monotonic()
        deltas = [self._grow(packed, now) for packed in message["answers"]]
        if self._cached is None:
            self._cached = message.get("cached")
        self._preemptions = message.get("preemptions", self._preemptions)
        if message.get("prompt_logprobs") is not None:
            self._prompt_logprobs = [
                None if one is None else unpack_logprobs(one, self._table)
                for one in message["prompt_logprobs"]
            ]
        finished = bool(message.get("finished"))
        if kind is RequestOutputKind.DELTA:
            return self._output(deltas, finished)
        if kind is RequestOutputKind.FINAL_ONLY and not finished:
            return None
        return self._output([self._whole(index) for index in range(len(self._answers))], finished)

    def _grow(self, packed: list[Any], now: float) -> CompletionOutput:
        index, text, tokens, packed_logprobs, finish_reason, stop_reason = packed
        answer = self._answers[index]
        if text:
            answer.pieces.append(text)
        if tokens:
            self._first = self._first or now
            self._last = now
        answer.tokens += tokens
        logprobs = None
        if self._has_logprobs:
            logprobs = [unpack_logprobs(one, self._table) for one in packed_logprobs or ()]
            answer.logprobs += logprobs
            for token, entries in zip(tokens, logprobs, strict=True):
                answer.cumulative += entries[token].logprob
        answer.finish_reason, answer.stop_reason = finish_reason, stop_reason
        cumulative = answer.cumulative if self._has_logprobs else None
        return CompletionOutput(index, text, tokens, cumulative, logprobs, finish_reason, stop_reason)

    def _whole(self, index: int) -> CompletionOutput:
        answer = self._answers[index]
        return CompletionOutput(
            index,
            "".join(answer.pieces),
            list(answer.tokens),
            answer.cumulative if self._has_logprobs else None,
            list(answer.logprobs) if self._has_logprobs else None,
            answer.finish_reason,
            answer.stop_reason,
        )

    def _output(self, outputs: list[CompletionOutput], finished: bool) -> RequestOutput:
        request = self._request
        return RequestOutput(
            request_id=request.id,
            prompt=request.prompt,
            prompt_token_ids=request.prompt_token_ids,
            prompt_logprobs=self._prompt_logprobs,
            outputs=outputs,
            finished=finished,
            metrics=RequestMetrics(
                request.arrival_time,
                self._first,
                self._last,
                sum(len(one.tokens) for one in self._answers),
                self._preemptions,
            ),
            num_cached_tokens=self._cached,
        )


def failed_output(request: Request, error: Exception) -> RequestOutput:
    """What becomes of a request that cannot be answered."""
    answers = [CompletionOutput(one.choice, "", [], finish_reason="error") for one in request.sequences]
    return RequestOutput(
        request.id, request.prompt, request.prompt_token_ids, None, answers, True, error=str(error)
    )

"""What users get back, in vLLM's shapes."""

from __future__ import annotations

from dataclasses import dataclass, field

from step3.engine.detokenizer import TokenTable
from step3.engine.progress import reveal
from step3.engine.request import Request, Sequence
from step3.engine.sampling.logprobs import TokenLogprobs


@dataclass
class Logprob:
    """The log-probability of a token at a place.

    Attributes:
        rank: 1 for the likeliest token.
        decoded_token: its text.
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    """One answer.

    Attributes:
        index: which of the request's `n`.
        logprobs: for each token, by token id, the chosen one and the likeliest; None where not asked for.
        cumulative_logprob: sum over the answer's tokens; None where no log-probabilities are asked for.
        finish_reason: "stop", "length", "abort" or "error"; None while it goes on.
        stop_reason: the stop string or token id that ended it; None for an end-of-sequence token.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        """Whether the answer has ended."""
        return self.finish_reason is not None


@dataclass
class RequestMetrics:
    """Seconds on the clock of `time.monotonic`, and counts.

    Attributes:
        first_token_latency: seconds from arrival to the first token; None before it.
    """

    arrival_time: float
    first_token_time: float | None
    last_token_time: float | None
    num_generation_tokens: int
    num_preemptions: int

    @property
    def first_token_latency(self) -> float | None:
        return None if self.first_token_time is None else self.first_token_time - self.arrival_time


@dataclass
class RequestOutput:
    """A request and its answers.

    Attributes:
        prompt: the text that was given, None for token ids.
        prompt_logprobs: None for the first token, then for each by token id the token itself and the
            likeliest; None where not asked for.
        num_cached_tokens: prompt tokens whose keys and values were there already.
        error: why answers have ended with "error".
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics | None = None
    num_cached_tokens: int | None = None
    error: str | None = None


@dataclass
class _Told:
    """How much of an answer was told already.

    Attributes:
        logprobs: of all its tokens, as users get them.
    """

    tokens: int = 0
    pieces: int = 0
    is_end: bool = False
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)


@dataclass
class OutputMaker:
    """Makes outputs of one request: all that there is, or what is new since the last time."""

    table: TokenTable
    _told: dict[int, _Told] = field(default_factory=dict)
    _prompt_logprobs: list[dict[int, Logprob] | None] = field(default_factory=lambda: [None])

    def cumulative(self, request: Request) -> RequestOutput:
        """All of all answers so far."""
        outputs = [self._completion(sequence, 0, 0) for sequence in request.sequences]
        return self._output(request, outputs)

    def delta(self, request: Request) -> RequestOutput:
        """What has come since the last delta; answers without anything new are left out."""
        outputs = []
        for sequence in request.sequences:
            told = self._told.setdefault(sequence.choice, _Told())
            if told.is_end:
                continue
            completion = self._completion(sequence, told.tokens, told.pieces)
            told.tokens, told.pieces = sequence.num_output_tokens, len(sequence.pieces)
            told.is_end = completion.finished()
            if completion.token_ids or completion.text or told.is_end:
                outputs.append(completion)
        return self._output(request, outputs)

    def _completion(self, sequence: Sequence, tokens: int, pieces: int) -> CompletionOutput:
        """An answer without its first tokens and pieces of text."""
        has_logprobs = sequence.request.params.logprobs is not None
        logprobs = None
        if has_logprobs:
            made = self._told.setdefault(sequence.choice, _Told()).logprobs
            made += [logprob_table(entry, self.table) for entry in sequence.logprobs[len(made) :]]
            # What was generated before, somewhere else, has none here.
            replayed = sequence.num_output_tokens - len(made)
            logprobs = made[max(0, tokens - replayed) :]
        return CompletionOutput(
            index=sequence.choice,
            text="".join(reveal(sequence)[pieces:]),
            token_ids=sequence.tokens[len(sequence.request.prompt_token_ids) + tokens :],
            cumulative_logprob=sequence.cumulative_logprob if has_logprobs else None,
            logprobs=logprobs,
            finish_reason=sequence.finish_reason,
            stop_reason=sequence.stop_reason,
        )

    def _output(self, request: Request, outputs: list[CompletionOutput]) -> RequestOutput:
        prompt_logprobs = None
        if request.params.prompt_logprobs is not None:
            made = self._prompt_logprobs
            made += [logprob_table(entry, self.table) for entry in request.prompt_logprobs[len(made) - 1 :]]
            prompt_logprobs = made
        times = [one.first_token_time for one in request.sequences if one.first_token_time is not None]
        lasts = [one.last_token_time for one in request.sequences if one.last_token_time is not None]
        return RequestOutput(
            request_id=request.id,
            prompt=request.prompt,
            prompt_token_ids=request.prompt_token_ids,
            prompt_logprobs=prompt_logprobs,
            outputs=outputs,
            finished=request.is_finished,
            metrics=RequestMetrics(
                request.arrival_time,
                min(times, default=None),
                max(lasts, default=None),
                sum(one.num_output_tokens for one in request.sequences),
                sum(one.num_preemptions for one in request.sequences),
            ),
            num_cached_tokens=request.sequences[0].num_cached_tokens,
            error=None if request.error is None else str(request.error),
        )


def logprob_table(entry: TokenLogprobs, table: TokenTable) -> dict[int, Logprob]:
    """A place's log-probabilities by token id: the token itself first, then the likeliest in their order."""
    found = {entry.token_id: Logprob(entry.logprob, entry.rank, table.text(entry.token_id))}
    for rank, (token, logprob) in enumerate(zip(entry.top_ids, entry.top_logprobs, strict=True), 1):
        found.setdefault(token, Logprob(logprob, rank, table.text(token)))
    return found

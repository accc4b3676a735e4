"""A request's whole state: what was asked, and for each of its answers how far it is."""

from __future__ import annotations

import sys
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from step3.errors import Step3Error

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

    from step3.engine.detokenizer import Detokenizer
    from step3.engine.sampling.logprobs import TokenLogprobs
    from step3.engine.sampling.params import SamplingParams
    from step3.engine.sampling.speculation import DraftSource
    from step3.engine.sampling.state import SamplingState
    from step3.engine.sampling.stop import StopWatch


class RequestError(Step3Error):
    """A request that cannot be served as it is; nothing was spent on it."""


class Status(Enum):
    """Where a sequence is."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, eq=False)
class PlacedPicture:
    """A picture and the part of a prompt that it takes.

    Attributes:
        digest: of its content, size and mode.
        image: upright RGB.
        places: `[features]` int64, ascending: the positions in the prompt that its features fill.
        start, end: the part of the prompt that depends on it, marks included.
    """

    digest: bytes
    image: Image.Image
    places: np.ndarray
    start: int
    end: int


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer of a request: the unit that is scheduled.

    Attributes:
        choice: which of the request's answers.
        tokens: the prompt, then what was generated.
        stop_tokens: tokens that end it.
        shortest, longest: tokens, the prompt's included, before which nothing ends it, and at which it ends.
        scores_prompt: whether the log-probabilities of the prompt's tokens are told with it.
        num_computed: how many of them have their keys and values in `blocks`.
        blocks: of the KV cache, in order.
        block_names: names of the full blocks, for the prefix cache.
        num_named: how many of `blocks` the prefix cache was told of.
        seat: row of the lane's block table while running.
        num_tabled: how many of `blocks` that row holds.
        drafts: tokens that this step tries behind the last one.
        draft_source: what proposes them; None until they are first asked for.
        num_cached_tokens: prompt tokens that were found in the cache at the first admission.
        features: of the request's pictures by number, while they are being filled in.
        watch: looks for stop strings; None where there are none.
        pieces: what may be shown of the answer, as it came; where nobody looks for stop strings, the text of
            the last tokens is made only when it is asked for, see `step3.engine.progress.reveal`.
        num_shown: how many of `tokens` have their text in `pieces`, or none to show.
        text_end: how many of `tokens` have text to show, if not all.
        finish_reason: "stop", "length", "abort" or "error", as in vLLM; None while it goes on.
        stop_reason: the stop string or token that ended it.
    """

    request: Request
    choice: int
    tokens: list[int]
    sampling: SamplingState
    detokenizer: Detokenizer | None
    watch: StopWatch | None
    stop_tokens: frozenset[int] = frozenset()
    shortest: int = 0
    longest: int = sys.maxsize
    scores_prompt: bool = False
    status: Status = Status.WAITING
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    block_names: list[bytes] = field(default_factory=list)
    num_named: int = 0
    seat: int = -1
    num_tabled: int = 0
    drafts: list[int] = field(default_factory=list)
    draft_source: DraftSource | None = None
    num_cached_tokens: int | None = None
    features: dict[int, Tensor] = field(default_factory=dict)
    pieces: list[str] = field(default_factory=list)
    num_shown: int = field(init=False)
    text_end: int | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    cumulative_logprob: float = 0.0
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    num_preemptions: int = 0
    first_token_time: float | None = None
    last_token_time: float | None = None

    def __post_init__(self) -> None:
        self.num_shown = len(self.request.prompt_token_ids)

    @property
    def output_token_ids(self) -> list[int]:
        """What was generated so far (a copy)."""
        return self.tokens[len(self.request.prompt_token_ids) :]

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - len(self.request.prompt_token_ids)

    @property
    def order(self) -> tuple[int, int, int]:
        """Who goes first: smaller priority, earlier arrival, smaller choice."""
        return self.request.priority, self.request.number, self.choice


@dataclass(slots=True, eq=False)
class Request:
    """What was asked, and its answers.

    Attributes:
        id: the caller's name for it.
        number: counts arrivals.
        priority: smaller goes first.
        eos_tokens: tokens that end its answers by themselves; others that do are told as their stop reason.
        salt: requests with different salts share no cached prefixes.
        arrival_time: seconds, on the clock of `time.monotonic`.
        sequences: `params.n` answers.
        prompt_logprobs: of each prompt token but the first.
        is_prompt_computed: the first answer's prompt went through the network; the others may share it.
        grammar: what the answers are constrained by, while it is being compiled.
        grammar_after: the token after which they are; None for from the beginning.
        error: why its answers ended with "error".
    """

    id: str
    number: int
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    pictures: tuple[PlacedPicture, ...] = ()
    priority: int = 0
    eos_tokens: frozenset[int] = frozenset()
    salt: bytes = b""
    arrival_time: float = 0.0
    sequences: list[Sequence] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    is_prompt_computed: bool = False
    grammar: Future[Any] | None = None
    grammar_after: int | None = None
    error: Step3Error | None = None

    @property
    def is_finished(self) -> bool:
        return all(sequence.status is Status.FINISHED for sequence in self.sequences)

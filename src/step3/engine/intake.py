"""From prompts and parameters to requests: everything is checked before it takes resources."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from step3.engine.config import EngineConfig
from step3.engine.detokenizer import Detokenizer
from step3.engine.network import Network
from step3.engine.progress import replay
from step3.engine.prompts import Prompt, PromptReader
from step3.engine.request import Request, RequestError
from step3.engine.request import Sequence as Answer
from step3.engine.sampling.bad_words import bad_word_ids
from step3.engine.sampling.params import SamplingParams
from step3.engine.sampling.random_numbers import request_seed
from step3.engine.sampling.state import SamplingState
from step3.engine.sampling.stop import StopStrings
from step3.engine.tokens import Tokens

if TYPE_CHECKING:
    from concurrent.futures import Future

    from step3.engine.sampling.structured import GrammarCompiler
    from step3.engine.sampling.structured_params import StructuredOutputsParams

MAX_TOKENS_OF_ANSWERS = 1 << 22
"""Prompt tokens times answers; each answer keeps its own list of tokens."""


class Intake:
    """Makes requests for one engine."""

    def __init__(self, config: EngineConfig, network: Network, tokens: Tokens, max_model_len: int) -> None:
        self._config, self._network, self._tokens = config, network, tokens
        self._max_model_len = max_model_len
        self._vocabulary = network.sizes.vocab_size
        self.prompts = PromptReader(
            tokens, network.vision, self._vocabulary, max_model_len, config.max_pictures
        )
        eos = tokens.eos_token_id
        self._stop_token_ids = network.stop_token_ids | ({eos} if eos is not None else set())
        self._compiler: GrammarCompiler | None = None
        self._numbers = count()

    def request(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        output_token_ids: Sequence[int] | Sequence[Sequence[int]] = (),
    ) -> Request:
        """A request that the engine can take.

        Args:
            request_id: the caller's name for it; a number where left out.
            priority: smaller goes first.
            output_token_ids: what was generated already, of the one answer or of each: it goes on from there
                as if it had never stopped, if the parameters name the seed.

        Raises:
            RequestError: the prompt is malformed, empty, too long, or holds ids or pictures that the model
                does not know; or there are too many answers.
            ParamsError: the parameters ask for something that the model does not have.
            PictureError: a picture cannot be read, or is too large.
        """
        params.check_model(self._vocabulary, self._config.max_logprobs)
        if request_id is not None and not isinstance(request_id, str):
            raise RequestError(f"request_id must be text, found {request_id!r:.100}")
        if type(priority) is not int:
            raise RequestError(f"priority must be a whole number, found {priority!r}")
        outputs = self._outputs(output_token_ids, params)
        read = self.prompts.read(prompt, params.truncate_prompt_tokens)
        self._check_size(len(read.ids), params.n)
        number = next(self._numbers)
        request = Request(
            id=str(number) if request_id is None else request_id,
            number=number,
            prompt=read.text,
            prompt_token_ids=read.ids,
            params=params,
            pictures=read.pictures,
            priority=priority,
            eos_tokens=frozenset() if params.ignore_eos else self._stop_token_ids,
            salt=read.salt,
            arrival_time=time.monotonic(),
        )
        if params.structured_outputs is not None:
            request.grammar = self._compile(params.structured_outputs)
            request.grammar_after = self._end_of_open_reasoning(read.ids)
        request.sequences = self._answers(request)
        for answer, output in zip(request.sequences, outputs, strict=False):
            replay(answer, output)
        return request

    def _outputs(
        self, output: Sequence[int] | Sequence[Sequence[int]], params: SamplingParams
    ) -> list[list[int]]:
        """What was generated of each answer."""
        if not output:
            return []
        rows: list[Any] = list(output)
        if not all(isinstance(row, list | tuple) for row in rows):
            if params.n > 1:
                raise RequestError("only a request with n = 1 can go on from what was generated")
            rows = [list(output)]
        if len(rows) != params.n:
            raise RequestError(f"output_token_ids has {len(rows)} rows for {params.n} answers: give one each")
        if not all(type(token) is int and 0 <= token < self._vocabulary for row in rows for token in row):
            raise RequestError(f"output_token_ids must be token ids from 0 to {self._vocabulary - 1}")
        return rows

    def _check_size(self, length: int, answers: int) -> None:
        if answers * length > MAX_TOKENS_OF_ANSWERS:
            raise RequestError(
                f"{answers} answers to a prompt of {length:,} tokens are {answers * length:,} tokens, "
                f"{MAX_TOKENS_OF_ANSWERS:,} can be kept: ask for fewer answers at a time"
            )

    def _compile(self, form: StructuredOutputsParams) -> Future[Any]:
        if self._compiler is None:
            # Most engines never need it, and its import is slow.
            from step3.engine.sampling.structured import GrammarCompiler

            self._compiler = GrammarCompiler(self._tokens.tokenizer, self._vocabulary, self._stop_token_ids)
        return self._compiler.compile(form)

    def _end_of_open_reasoning(self, ids: list[int]) -> int | None:
        """The token that ends the reasoning in which the prompt stops, if it does: the answer follows it."""
        reasoning = self._tokens.reasoning
        if reasoning is None:
            return None
        last = next((token for token in reversed(ids) if token in reasoning), None)
        return reasoning[1] if last == reasoning[0] else None

    def _answers(self, request: Request) -> list[Answer]:
        params = request.params
        seed = params.seed
        if seed is None:
            seed = request_seed(self._config.seed, request.number)
        bad_words = bad_word_ids(params.bad_words or (), self._tokens.encode_plain)
        stops = StopStrings(params.stop, include=params.include_stop_str_in_output) if params.stop else None
        stop_tokens = request.eos_tokens
        if params.stop_token_ids:
            stop_tokens = stop_tokens.union(params.stop_token_ids)
        thought_end = None
        if params.thinking_token_budget is not None:
            thought_end = self._end_of_open_reasoning(request.prompt_token_ids)
        length = len(request.prompt_token_ids)
        longest = min(self._max_model_len, length + (params.max_tokens or self._max_model_len))
        answers = []
        for choice in range(params.n):
            sampling = SamplingState(
                params,
                seed=seed,
                choice=choice,
                prompt=request.prompt_token_ids,
                vocab_size=self._vocabulary,
                eos_token_ids=self._stop_token_ids,
                bad_words=bad_words,
                thought_end=thought_end,
            )
            answer = Answer(
                request=request,
                choice=choice,
                tokens=list(request.prompt_token_ids),
                sampling=sampling,
                detokenizer=Detokenizer(self._tokens.table, params.skip_special_tokens)
                if params.detokenize
                else None,
                watch=stops.watch() if stops else None,
                stop_tokens=stop_tokens,
                shortest=length + params.min_tokens,
                longest=longest,
                scores_prompt=choice == 0 and params.prompt_logprobs is not None,
            )
            answers.append(answer)
        return answers

"""`POST /v1/completions`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from step3.server.answering import Answering, Logprobs, Piece, Usage, error_event, new_id, read_output
from step3.server.errors import RequestFault
from step3.server.protocol import CompletionRequest
from step3.server.streams import DONE, event


class CompletionAnswer:
    """The answers to one request: `n` for each of its prompts, in the prompts' order."""

    def __init__(self, answering: Answering, body: CompletionRequest) -> None:
        """
        Raises:
            RequestFault: the request cannot be served.
        """
        self._answering, self._body = answering, body
        self._model = answering.model_name(body.model)
        self._id, self._usage = new_id("cmpl-"), Usage()
        self._params = {**body.params(), "max_tokens": answering.longest(body.max_tokens)}
        self._params["skip_special_tokens"] = body.skip_special_tokens
        if body.logprobs is not None:
            self._params["logprobs"] = body.logprobs
        self._lengths: dict[int, int] = {}

    async def whole(self) -> dict[str, Any]:
        """The finished answers as a `text_completion`."""
        choices: dict[int, dict[str, Any]] = {}
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                choices[piece.index] = self._choice(piece)
        return {
            **self._head(),
            "choices": [choices[index] for index in sorted(choices)],
            "usage": self._usage.json(),
        }

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Chunks as server-sent events. What fails before the first raises RequestFault."""
        head, has_begun = self._head(), False
        try:
            async with aclosing(self._pieces()) as pieces:
                async for piece in pieces:
                    has_begun = True
                    if piece.text or piece.logprobs or piece.finish_reason:
                        yield event({**head, "choices": [self._choice(piece)]})
        except RequestFault as fault:
            if not has_begun:
                raise
            yield event(error_event(fault))
        else:
            if self._body.wants_usage:
                yield event({**head, "choices": [], "usage": self._usage.json()})
        yield DONE

    async def _pieces(self) -> AsyncGenerator[Piece, None]:
        with self._answering.room((self._body.n or 1) * len(self._body.prompts)):
            of_prompts = self._of_prompt(0) if len(self._body.prompts) == 1 else self._of_prompts()
            async with aclosing(of_prompts) as pieces:
                async for piece in pieces:
                    yield piece

    async def _of_prompts(self) -> AsyncGenerator[Piece, None]:
        # The prompts are answered beside each other; the first that fails ends them all.
        found: asyncio.Queue[Piece | RequestFault | None] = asyncio.Queue()

        async def answer(number: int) -> None:
            try:
                async with aclosing(self._of_prompt(number)) as pieces:
                    async for piece in pieces:
                        found.put_nowait(piece)
                found.put_nowait(None)
            except RequestFault as fault:
                found.put_nowait(fault)

        tasks = [asyncio.create_task(answer(number)) for number in range(len(self._body.prompts))]
        try:
            unfinished = len(tasks)
            while unfinished:
                piece_or_end = await found.get()
                if isinstance(piece_or_end, RequestFault):
                    raise piece_or_end
                if piece_or_end is None:
                    unfinished -= 1
                else:
                    yield piece_or_end
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _of_prompt(self, number: int) -> AsyncGenerator[Piece, None]:
        call = {
            "prompt": self._body.prompts[number],
            "params": self._params,
            "stream": bool(self._body.stream),
            "priority": self._body.priority,
        }
        is_counted = False
        async with aclosing(self._answering.items("complete", call)) as items:
            async for item in items:
                if not is_counted:
                    self._usage.prompt += item[0]
                    self._usage.cached += item[1]
                    is_counted = True
                for piece in read_output(item, self._usage, number * (self._body.n or 1)):
                    yield piece

    def _choice(self, piece: Piece) -> dict[str, Any]:
        logprobs = None
        if piece.logprobs is not None:
            logprobs = _logprobs(piece.logprobs, self._lengths.get(piece.index, 0))
            told = self._lengths.get(piece.index, 0)
            self._lengths[piece.index] = told + sum(len(token) for token in logprobs["tokens"])
        return {
            "index": piece.index,
            "text": piece.text,
            "logprobs": logprobs,
            "finish_reason": piece.finish_reason,
        }

    def _head(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._answering.now(),
            "model": self._model,
        }


def _logprobs(packed: Logprobs, offset: int) -> dict[str, Any]:
    """OpenAI's older shape; `offset` counts the characters of the tokens before."""
    tokens = [_shown(token) for token, _, _ in packed]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [max(logprob, -9999.0) for _, logprob, _ in packed],
        "top_logprobs": [_best(token, logprob, best) for token, logprob, best in packed],
        "text_offset": offsets,
    }


def _best(token: bytes, logprob: float, best: list[list[Any]]) -> Mapping[str, float]:
    """The likeliest tokens, and the chosen one."""
    shown = {_shown(other): max(one, -9999.0) for other, one in best}
    shown.setdefault(_shown(token), max(logprob, -9999.0))
    return shown


def _shown(token: bytes) -> str:
    return token.decode("utf-8", "replace")

"""What chat and completions share: limits, the way to the engine, and usage."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from step3.server.config import ServerConfig
from step3.server.conversation import conversation
from step3.server.engine_client import EngineFailure
from step3.server.errors import RequestFault, error_body, fault_of
from step3.server.front_door import Gate
from step3.server.pictures import PictureSource
from step3.server.protocol import Message
from step3.server.supervisor import Supervisor

Logprobs = list[list[Any]]
"""For each token `[bytes, log-probability, [[bytes, log-probability] of the likeliest]]`."""


@dataclass
class Usage:
    """Tokens of a request, as the engine counts them.

    Attributes:
        cached: prompt tokens whose keys and values were there already.
        thoughts: those of the answers' tokens that are reasoning.
    """

    prompt: int = 0
    cached: int = 0
    answers: int = 0
    thoughts: int = 0

    def json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.answers,
            "total_tokens": self.prompt + self.answers,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.thoughts},
        }


@dataclass(frozen=True)
class Piece:
    """What an answer has grown by.

    Attributes:
        index: which answer.
        finish_reason: set in its last piece.
        stop: the stop string that ended it.
    """

    index: int
    text: str
    finish_reason: str | None
    stop: str | None
    logprobs: Logprobs | None


@dataclass
class Answering:
    """The server's state that answers need."""

    config: ServerConfig
    supervisor: Supervisor
    gate: Gate
    pictures: PictureSource

    def now(self) -> int:
        """Seconds since 1970."""
        return int(time.time())

    async def conversation(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Messages as the engine takes them, with their pictures read.

        Raises:
            RequestFault: see `step3.server.conversation`.
        """
        most = self.supervisor.info["max_pictures"]
        return await conversation(messages, self.pictures, most, self.config.max_body_bytes)

    def model_name(self, asked: str | None) -> str:
        """What answers call the model.

        Raises:
            RequestFault: 404, the client asks for another one.
        """
        names = self.config.served_model_names
        if asked is not None and asked not in names:
            raise RequestFault(
                404,
                f"there is no model {asked!r} here: there is {', '.join(names)}",
                "model",
                "model_not_found",
            )
        return asked or names[0]

    def longest(self, asked: int | None, name: str = "max_tokens") -> int | None:
        """The longest answer in tokens, None for what the context holds; `name` is the field's.

        Raises:
            RequestFault: it is longer than this server allows.
        """
        limit = self.config.max_output_tokens
        if limit is not None and asked is not None and asked > limit:
            raise RequestFault(400, f"{name} is {asked}, this server allows {limit}", name)
        return limit if asked is None else asked

    @contextmanager
    def room(self, count: int) -> Iterator[None]:
        """Holds a place for each answer.

        Raises:
            RequestFault: too many answers are asked for, or being made.
        """
        if count > self.config.max_n:
            raise RequestFault(
                400, f"{count} answers are asked for, this server gives at most {self.config.max_n}", "n"
            )
        self.gate.enter(count)
        try:
            yield
        finally:
            self.gate.leave(count)

    async def items(self, method: str, arguments: Any) -> AsyncGenerator[Any, None]:
        """A call's items.

        Raises:
            RequestFault: the engine refuses, or fails.
        """
        try:
            async with self.supervisor.call(method, arguments, self.config.request_seconds) as call:
                async for item in call:
                    yield item
        except EngineFailure as failure:
            raise fault_of(failure) from None

    async def ask(self, method: str, arguments: Any) -> Any:
        """A call's one item.

        Raises:
            RequestFault: the engine refuses, or fails.
        """
        try:
            return await self.supervisor.ask(method, arguments)
        except EngineFailure as failure:
            raise fault_of(failure) from None


def read_output(item: Any, usage: Usage, offset: int = 0) -> list[Piece]:
    """The pieces in one of the engine's outputs, which is added to `usage`.

    Args:
        offset: number of the first of its answers.
    """
    _, _, answers = item
    pieces = []
    for index, text, num_tokens, num_thoughts, finish_reason, stop, logprobs in answers:
        usage.answers += num_tokens
        usage.thoughts += num_thoughts
        pieces.append(Piece(offset + index, text, finish_reason, stop, logprobs))
    return pieces


def new_id(prefix: str) -> str:
    """A name for an answer or a part of one, which begins with `prefix`."""
    return prefix + uuid.uuid4().hex


def error_event(fault: RequestFault) -> dict[str, Any]:
    """What a stream that has begun tells of a fault."""
    return error_body(fault.status_code, str(fault.detail), fault.param, fault.code)

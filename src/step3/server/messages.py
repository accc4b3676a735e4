"""`POST /v1/messages`: Anthropic's protocol."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from itertools import chain
from typing import Any

from step3.server.answering import Answering, Usage, new_id
from step3.server.errors import RequestFault, messages_error
from step3.server.messages_protocol import MessagesRequest
from step3.server.streams import named_event
from step3.server.turns import Question, TurnDelta, Turns

PING = named_event("ping", {"type": "ping"})
SIGNATURE = "unsigned"
"""Clients give signatures of thoughts back; this server does not need them."""

_STOP_REASONS = {"tool_calls": "tool_use", "length": "max_tokens"}


def messages_question(
    answering: Answering, body: MessagesRequest, messages: list[dict[str, Any]]
) -> Question:
    """What a request asks; `messages` are its turns, with their pictures read.

    Raises:
        RequestFault: the answer would be longer than this server allows.
    """
    return Question(
        messages=messages,
        tools=body.shown_tools,
        forced_tool=body.forced_tool,
        parallel=body.is_parallel,
        # The ends of thoughts and of tool calls are special tokens in some checkpoints, and must be seen.
        params={
            **body.params,
            "max_tokens": answering.longest(body.max_tokens),
            "skip_special_tokens": False,
        },
        template=body.template,
        thinks=body.thinks,
        thinking_budget=body.thinking_budget,
        shows_thinking=body.shows_thinking,
        is_streamed=bool(body.stream),
    )


class MessagesAnswer:
    """The answer to one request, from the assistant's turn to Anthropic's objects."""

    def __init__(self, answering: Answering, body: MessagesRequest, question: Question) -> None:
        """
        Raises:
            RequestFault: the client asks for another model.
        """
        self._model = answering.model_name(body.model)
        self._id = new_id("msg_")
        self._turns = Turns(answering, question)

    async def whole(self) -> dict[str, Any]:
        """The finished answer as a `message`."""
        blocks = _Blocks()
        message = self._message()
        async with aclosing(self._turns.pieces()) as pieces:
            async for piece in pieces:
                deque(chain(blocks.add(piece.deltas), blocks.close()), maxlen=0)
                message["stop_reason"], message["stop_sequence"] = _stop(piece.finish_reason, piece.stop)
        return {**message, "content": blocks.finished, "usage": _usage(self._turns.usage)}

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Anthropic's events. What fails before the first raises RequestFault."""
        blocks, has_begun = _Blocks(), False
        try:
            async with aclosing(self._turns.pieces()) as pieces:
                async for piece in pieces:
                    events: list[dict[str, Any]] = []
                    if not has_begun:
                        has_begun = True
                        message = {
                            **self._message(),
                            "usage": {**_usage(self._turns.usage), "output_tokens": 0},
                        }
                        events.append({"type": "message_start", "message": message})
                    events += blocks.add(piece.deltas)
                    if piece.finish_reason is not None:
                        events += blocks.close()
                        reason, sequence = _stop(piece.finish_reason, piece.stop)
                        delta = {"stop_reason": reason, "stop_sequence": sequence}
                        usage = _usage(self._turns.usage)
                        events.append({"type": "message_delta", "delta": delta, "usage": usage})
                        events.append({"type": "message_stop"})
                    if events:
                        yield b"".join(named_event(event["type"], event) for event in events)
        except RequestFault as fault:
            if not has_begun:
                raise
            yield named_event("error", messages_error(fault.status_code, str(fault.detail)))

    def _message(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }


class _Blocks:
    """Cuts a turn into blocks: of thinking, of text, and of each call.

    Attributes:
        finished: all blocks, the open one as far as it is; a call's input when it is closed.
    """

    def __init__(self) -> None:
        self.finished: list[dict[str, Any]] = []
        self._open: str | int | None = None
        self._arguments = ""

    def add(self, deltas: Sequence[TurnDelta]) -> Iterator[dict[str, Any]]:
        """Takes what the turn has grown by; yields the events that tell of it."""
        for delta in deltas:
            kind = delta.call if delta.call is not None else "thinking" if delta.reasoning else "text"
            if kind != self._open:
                yield from self.close()
                yield self._begin(kind, delta)
            block, event = self.finished[-1], {"type": "content_block_delta", "index": self._index}
            if delta.reasoning:
                block["thinking"] += delta.reasoning
                yield {**event, "delta": {"type": "thinking_delta", "thinking": delta.reasoning}}
            elif delta.content:
                block["text"] += delta.content
                yield {**event, "delta": {"type": "text_delta", "text": delta.content}}
            elif delta.arguments:
                self._arguments += delta.arguments
                yield {**event, "delta": {"type": "input_json_delta", "partial_json": delta.arguments}}

    def close(self) -> Iterator[dict[str, Any]]:
        """Ends the block that is open."""
        if self._open is None:
            return
        if self._open == "thinking":
            delta = {"type": "signature_delta", "signature": SIGNATURE}
            yield {"type": "content_block_delta", "index": self._index, "delta": delta}
        elif isinstance(self._open, int):
            self.finished[-1]["input"] = json.loads(self._arguments or "{}")
        self._open = None
        yield {"type": "content_block_stop", "index": self._index}

    @property
    def _index(self) -> int:
        return len(self.finished) - 1

    def _begin(self, kind: str | int, delta: TurnDelta) -> dict[str, Any]:
        block: dict[str, Any] = {"type": "text", "text": ""}
        shown = block
        if kind == "thinking":
            block = {"type": "thinking", "thinking": "", "signature": SIGNATURE}
            shown = {**block, "signature": ""}
        elif isinstance(kind, int):
            block = shown = {"type": "tool_use", "id": new_id("toolu_"), "name": delta.name, "input": {}}
        self._open, self._arguments = kind, ""
        self.finished.append(block)
        return {"type": "content_block_start", "index": self._index, "content_block": dict(shown)}


def _stop(finish_reason: str | None, stop: str | None) -> tuple[str, str | None]:
    if finish_reason == "stop" and stop is not None:
        return "stop_sequence", stop
    return _STOP_REASONS.get(finish_reason or "", "end_turn"), None


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.answers,
    }

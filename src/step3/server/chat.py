"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from step3.server.answering import Answering, Logprobs, Piece, Usage, error_event, new_id, read_output
from step3.server.conversation import conversation
from step3.server.errors import RequestFault
from step3.server.protocol import ChatRequest
from step3.server.reasoning import ReasoningStream
from step3.server.streams import DONE, event
from step3.server.tool_calls import ToolCallStream


@dataclass
class ChatDelta:
    """What a piece of text adds to an answer, as OpenAI's chunks name it."""

    reasoning: str = ""
    content: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if self.reasoning:
            # vLLM and the model's own guides say the one, newer clients the other.
            delta["reasoning_content"] = delta["reasoning"] = self.reasoning
        if self.content:
            delta["content"] = self.content
        if self.tool_calls:
            delta["tool_calls"] = self.tool_calls
        return delta


class ChatReader:
    """Reads one answer's text: reasoning, then content with tool calls."""

    def __init__(
        self, in_reasoning: bool, tools: Sequence[Mapping[str, Any]] | None, shows_reasoning: bool
    ) -> None:
        self._reasoning = ReasoningStream(in_reasoning)
        self._tools = None if tools is None else ToolCallStream(tools)
        self._shows_reasoning = shows_reasoning
        self.has_called = False

    def push(self, text: str, is_last: bool) -> ChatDelta:
        """What `text` adds; the last piece also brings what was held back."""
        found = ChatDelta()
        for part in self._reasoning.push(text) + (self._reasoning.finish() if is_last else []):
            if part.reasoning and self._shows_reasoning:
                found.reasoning += part.reasoning
            if part.content:
                self._read_content(part.content, found)
        if is_last and self._tools is not None:
            self._take_calls(self._tools.finish(), found)
        return found

    def _read_content(self, text: str, found: ChatDelta) -> None:
        if self._tools is None:
            found.content += text
        else:
            self._take_calls(self._tools.push(text), found)

    def _take_calls(self, deltas: Sequence[Any], found: ChatDelta) -> None:
        for delta in deltas:
            if delta.content:
                found.content += delta.content
            if delta.index is None:
                continue
            self.has_called = True
            function: dict[str, Any] = {}
            call: dict[str, Any] = {"index": delta.index, "function": function}
            if delta.name is not None:
                call.update(id=new_id("call"), type="function")
                function["name"] = delta.name
            # Clients add pieces of arguments up, from the first one on.
            function["arguments"] = delta.arguments or ""
            found.tool_calls.append(call)


class ChatAnswer:
    """The answers to one request, from the engine's outputs to OpenAI's objects."""

    def __init__(self, answering: Answering, body: ChatRequest) -> None:
        """
        Raises:
            RequestFault: the request cannot be served.
        """
        self._answering, self._body = answering, body
        self._model = answering.model_name(body.model)
        self._id, self._usage = new_id("chatcmpl"), Usage()
        self._readers: dict[int, ChatReader] = {}
        self._in_reasoning = False
        params = answering.params(body, body.longest)
        if body.logprobs:
            params["logprobs"] = body.top_logprobs or 0
        # The ends of thoughts and of tool calls are special tokens in some checkpoints, and must be seen.
        params["skip_special_tokens"] = body.skip_special_tokens
        self._tools = body.shown_tools
        self._call = {
            "messages": conversation(body.messages),
            "tools": self._tools,
            "template": dict(body.chat_template_kwargs or {}),
            "tool_choice": body.forced_tool,
            "parallel": body.parallel_tool_calls is not False,
            "params": params,
            "stream": bool(body.stream),
            "priority": body.priority,
        }

    async def whole(self) -> dict[str, Any]:
        """The finished answers as a `chat.completion`."""
        choices: dict[int, dict[str, Any]] = {}
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                choices[piece.index] = self._choice(piece)
        return {
            **self._head("chat.completion"),
            "choices": [choices[index] for index in sorted(choices)],
            "usage": self._usage.json(),
        }

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """`chat.completion.chunk`s as server-sent events. What fails before the first raises RequestFault."""
        head, begun = self._head("chat.completion.chunk"), set[int]()
        try:
            async with aclosing(self._pieces()) as pieces:
                async for piece in pieces:
                    if piece.index not in begun:
                        begun.add(piece.index)
                        yield event(
                            _chunk(head, piece.index, {"role": "assistant", "content": ""}, None, None)
                        )
                    delta = self._reader(piece.index).push(piece.text, piece.finish_reason is not None)
                    logprobs = _logprobs(piece.logprobs) if piece.logprobs else None
                    reason = self._finish_reason(piece)
                    if delta.json() or logprobs or reason:
                        yield event(_chunk(head, piece.index, delta.json(), logprobs, reason))
        except RequestFault as fault:
            if not begun:
                raise
            yield event(error_event(fault))
        else:
            if self._body.wants_usage:
                yield event({**head, "choices": [], "usage": self._usage.json()})
        yield DONE

    async def _pieces(self) -> AsyncGenerator[Piece, None]:
        answering = self._answering
        with answering.room(self._body):
            async with aclosing(answering.items("chat", self._call)) as items:
                async for item in items:
                    if isinstance(item, dict):
                        self._in_reasoning = item["in_reasoning"]
                        continue
                    self._usage.prompt, self._usage.cached, _ = item
                    for piece in read_output(item, self._usage):
                        yield piece

    def _reader(self, index: int) -> ChatReader:
        if index not in self._readers:
            self._readers[index] = ChatReader(self._in_reasoning, self._tools, self._body.include_reasoning)
        return self._readers[index]

    def _choice(self, piece: Piece) -> dict[str, Any]:
        delta = self._reader(piece.index).push(piece.text, is_last=True)
        message: dict[str, Any] = {"role": "assistant", "content": delta.content, "refusal": None}
        message["reasoning_content"] = message["reasoning"] = delta.reasoning or None
        calls = _join_calls(delta.tool_calls)
        if calls:
            message["tool_calls"] = calls
            message["content"] = delta.content or None
        return {
            "index": piece.index,
            "message": message,
            "logprobs": None if piece.logprobs is None else _logprobs(piece.logprobs),
            "finish_reason": self._finish_reason(piece),
        }

    def _finish_reason(self, piece: Piece) -> str | None:
        if piece.finish_reason == "stop" and self._reader(piece.index).has_called:
            return "tool_calls"
        return piece.finish_reason

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._answering.now(), "model": self._model}


def _chunk(
    head: Mapping[str, Any],
    index: int,
    delta: Mapping[str, Any],
    logprobs: Mapping[str, Any] | None,
    finish_reason: str | None,
) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    return {**head, "choices": [choice]}


def _join_calls(pieces: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Whole calls out of the pieces that a stream sends."""
    calls: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        function = piece["function"]
        if piece["index"] not in calls:
            calls[piece["index"]] = {"id": piece["id"], "type": "function", "function": dict(function)}
        else:
            calls[piece["index"]]["function"]["arguments"] += function["arguments"]
    return list(calls.values())


def _logprobs(packed: Logprobs) -> dict[str, Any]:
    content = [
        {**_token(token, logprob), "top_logprobs": [_token(*one) for one in best]}
        for token, logprob, best in packed
    ]
    return {"content": content, "refusal": None}


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    # JSON has no -inf; OpenAI writes this for what is that unlikely.
    shown = max(logprob, -9999.0)
    return {"token": token.decode("utf-8", "replace"), "logprob": shown, "bytes": list(token)}

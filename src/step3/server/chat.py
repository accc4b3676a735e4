"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from step3.server.answering import Answering, Logprobs, error_event, new_id
from step3.server.errors import RequestFault
from step3.server.protocol import ChatRequest
from step3.server.streams import DONE, event
from step3.server.turns import Question, TurnDelta, TurnPiece, Turns


def chat_question(answering: Answering, body: ChatRequest, messages: list[dict[str, Any]]) -> Question:
    """What a request asks; `messages` are its own, with their pictures read.

    Raises:
        RequestFault: the answer would be longer than this server allows.
    """
    params = {**body.params(), "max_tokens": answering.longest(body.longest)}
    if body.logprobs:
        params["logprobs"] = body.top_logprobs or 0
    # The ends of thoughts and of tool calls are special tokens in some checkpoints, and must be seen.
    params["skip_special_tokens"] = body.skip_special_tokens
    return Question(
        messages=messages,
        tools=body.shown_tools,
        forced_tool=body.forced_tool,
        parallel=body.parallel_tool_calls is not False,
        params=params,
        template={str(name): value for name, value in (body.chat_template_kwargs or {}).items()},
        thinks=body.thinks,
        thinking_budget=body.thinking_budget,
        shows_thinking=body.include_reasoning,
        answers=body.n or 1,
        is_streamed=bool(body.stream),
        priority=body.priority,
    )


class ChatAnswer:
    """The answers to one request, from the assistant's turns to OpenAI's objects."""

    def __init__(self, answering: Answering, body: ChatRequest, question: Question) -> None:
        """
        Raises:
            RequestFault: the client asks for another model.
        """
        self._model = answering.model_name(body.model)
        self._wants_usage = body.wants_usage
        self._id, self._created = new_id("chatcmpl-"), answering.now()
        self._turns = Turns(answering, question)

    async def whole(self) -> dict[str, Any]:
        """The finished answers as a `chat.completion`."""
        choices: dict[int, dict[str, Any]] = {}
        async with aclosing(self._turns.pieces()) as pieces:
            async for piece in pieces:
                choices[piece.index] = _choice(piece)
        return {
            **self._head("chat.completion"),
            "choices": [choices[index] for index in sorted(choices)],
            "usage": self._turns.usage.json(),
        }

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """`chat.completion.chunk`s as server-sent events. What fails before the first raises RequestFault."""
        head, begun = self._head("chat.completion.chunk"), set[int]()
        try:
            async with aclosing(self._turns.pieces()) as pieces:
                async for piece in pieces:
                    if piece.index not in begun:
                        begun.add(piece.index)
                        first = {"role": "assistant", "content": ""}
                        yield event(_chunk(head, piece.index, first, None, None))
                    delta = _delta(piece.deltas)
                    logprobs = _logprobs(piece.logprobs) if piece.logprobs else None
                    if delta or logprobs or piece.finish_reason:
                        yield event(_chunk(head, piece.index, delta, logprobs, piece.finish_reason))
        except RequestFault as fault:
            if not begun:
                raise
            yield event(error_event(fault))
        else:
            if self._wants_usage:
                yield event({**head, "choices": [], "usage": self._turns.usage.json()})
        yield DONE

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


def _delta(deltas: Sequence[TurnDelta]) -> dict[str, Any]:
    """What a turn has grown by, as OpenAI's chunks name it."""
    delta: dict[str, Any] = {}
    reasoning = "".join(one.reasoning for one in deltas)
    if reasoning:
        # vLLM and the model's own guides say the one, newer clients the other.
        delta["reasoning_content"] = delta["reasoning"] = reasoning
    content = "".join(one.content for one in deltas)
    if content:
        delta["content"] = content
    calls = [_call_delta(one) for one in deltas if one.call is not None]
    if calls:
        delta["tool_calls"] = calls
    return delta


def _call_delta(delta: TurnDelta) -> dict[str, Any]:
    # Clients add pieces of arguments up, from the first one on.
    function: dict[str, Any] = {"arguments": delta.arguments}
    if delta.name is None:
        return {"index": delta.call, "function": function}
    function = {"name": delta.name, **function}
    return {"index": delta.call, "id": new_id("call_"), "type": "function", "function": function}


def _choice(piece: TurnPiece) -> dict[str, Any]:
    delta = _delta(piece.deltas)
    content, reasoning = delta.get("content"), delta.get("reasoning")
    calls = _join_calls(delta.get("tool_calls", ()))
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    message["reasoning_content"] = message["reasoning"] = reasoning
    if calls:
        message["tool_calls"] = calls
    else:
        message["content"] = content or ""
    return {
        "index": piece.index,
        "message": message,
        "logprobs": None if piece.logprobs is None else _logprobs(piece.logprobs),
        "finish_reason": piece.finish_reason,
    }


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

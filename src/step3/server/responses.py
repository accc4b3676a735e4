"""`POST /v1/responses`: OpenAI's newer protocol."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from itertools import chain
from typing import Any

from step3.server.answering import Answering, Usage, error_event, new_id
from step3.server.errors import RequestFault
from step3.server.responses_protocol import NamedFunctionTool, ResponsesRequest
from step3.server.streams import named_event
from step3.server.turns import Question, TurnDelta, Turns


def responses_question(
    answering: Answering, body: ResponsesRequest, messages: list[dict[str, Any]]
) -> Question:
    """What a request asks; `messages` are its turns, with their pictures read.

    Raises:
        RequestFault: the answer would be longer than this server allows.
    """
    longest = answering.longest(body.max_output_tokens, "max_output_tokens")
    return Question(
        messages=messages,
        tools=body.shown_tools,
        forced_tool=body.forced_tool,
        parallel=body.parallel_tool_calls is not False,
        # The ends of thoughts and of tool calls are special tokens in some checkpoints, and must be seen.
        params={**body.params, "max_tokens": longest, "skip_special_tokens": False},
        thinks=body.effort != "none",
        thinking_budget=body.thinking_budget,
        is_streamed=bool(body.stream),
    )


class ResponsesAnswer:
    """The answer to one request, from the assistant's turn to OpenAI's objects."""

    def __init__(self, answering: Answering, body: ResponsesRequest, question: Question) -> None:
        """
        Raises:
            RequestFault: the client asks for another model.
        """
        self._body, self._model = body, answering.model_name(body.model)
        self._id, self._created = new_id("resp_"), answering.now()
        self._turns = Turns(answering, question)

    async def whole(self) -> dict[str, Any]:
        """The finished answer as a `response`."""
        items, reason = _Items(), None
        async with aclosing(self._turns.pieces()) as pieces:
            async for piece in pieces:
                deque(chain(items.add(piece.deltas), items.close(_status(piece.finish_reason))), maxlen=0)
                reason = piece.finish_reason
        return self._response(_status(reason), items.finished)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """OpenAI's numbered events. What fails before the first raises RequestFault."""
        items, number = _Items(), 0

        def numbered(events: Sequence[dict[str, Any]]) -> bytes:
            nonlocal number
            sent = []
            for event in events:
                sent.append(named_event(event["type"], {**event, "sequence_number": number}))
                number += 1
            return b"".join(sent)

        try:
            async with aclosing(self._turns.pieces()) as pieces:
                async for piece in pieces:
                    events: list[dict[str, Any]] = []
                    if number == 0:
                        begun = self._response("in_progress", [])
                        events.append({"type": "response.created", "response": begun})
                        events.append({"type": "response.in_progress", "response": begun})
                    events += items.add(piece.deltas)
                    if piece.finish_reason is not None:
                        status = _status(piece.finish_reason)
                        events += items.close(status)
                        response = self._response(status, items.finished)
                        events.append({"type": f"response.{status}", "response": response})
                    if events:
                        yield numbered(events)
        except RequestFault as fault:
            if number == 0:
                raise
            error = error_event(fault)["error"]
            failed = self._response("failed", items.finished)
            failed["error"] = {"code": "server_error", "message": error["message"]}
            yield numbered([{"type": "response.failed", "response": failed}])

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        body = self._body
        text = None if body.text is None else body.text.model_dump(by_alias=True, exclude_none=True)
        choice = body.tool_choice
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "metadata": body.metadata or {},
            "model": self._model,
            "output": list(output),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": body.effort, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": body.temperature,
            "text": {"format": {"type": "text"}, **(text or {})},
            "tool_choice": choice.model_dump() if isinstance(choice, NamedFunctionTool) else choice or "auto",
            "tools": [tool.model_dump() for tool in body.tools or ()],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None if status == "in_progress" else _usage(self._turns.usage),
            "user": body.user,
        }


class _Items:
    """Cuts a turn into items: its reasoning, its message, and each of its calls.

    Attributes:
        finished: all items, the open one as far as it is.
    """

    def __init__(self) -> None:
        self.finished: list[dict[str, Any]] = []
        self._open: str | int | None = None

    def add(self, deltas: Sequence[TurnDelta]) -> Iterator[dict[str, Any]]:
        """Takes what the turn has grown by; yields the events that tell of it, without their numbers."""
        for delta in deltas:
            kind = delta.call if delta.call is not None else "reasoning" if delta.reasoning else "message"
            if kind != self._open:
                yield from self.close("completed")
                yield from self._begin(kind, delta)
            item = self.finished[-1]
            if isinstance(kind, int):
                if delta.arguments:
                    item["arguments"] += delta.arguments
                    name = "response.function_call_arguments.delta"
                    yield {"type": name, **self._place(False), "delta": delta.arguments}
                continue
            text = delta.reasoning or delta.content
            item["content"][0]["text"] += text
            event = {**self._place(), "delta": text}
            if kind == "message":
                event["logprobs"] = []
            yield {"type": f"response.{_TEXTS[kind]}.delta", **event}

    def close(self, status: str) -> Iterator[dict[str, Any]]:
        """Ends the item that is open; `status` is "incomplete" where it was cut off."""
        if self._open is None:
            return
        item = self.finished[-1]
        item["status"] = status
        if isinstance(self._open, int):
            name = "response.function_call_arguments.done"
            whole = {"name": item["name"], "arguments": item["arguments"]}
            yield {"type": name, **self._place(False), **whole}
        else:
            part = item["content"][0]
            done = {**self._place(), "text": part["text"]}
            if self._open == "message":
                done["logprobs"] = []
            yield {"type": f"response.{_TEXTS[self._open]}.done", **done}
            yield {"type": "response.content_part.done", **self._place(), "part": dict(part)}
        self._open = None
        yield {"type": "response.output_item.done", "output_index": self._index, "item": _copy(item)}

    @property
    def _index(self) -> int:
        return len(self.finished) - 1

    def _place(self, has_content: bool = True) -> dict[str, Any]:
        place = {"item_id": self.finished[-1]["id"], "output_index": self._index}
        return {**place, "content_index": 0} if has_content else place

    def _begin(self, kind: str | int, delta: TurnDelta) -> Iterator[dict[str, Any]]:
        self._open = kind
        item: dict[str, Any]
        if isinstance(kind, int):
            item = {"type": "function_call", "id": new_id("fc_"), "call_id": new_id("call_")}
            item.update(name=delta.name, arguments="")
        elif kind == "reasoning":
            item = {"type": "reasoning", "id": new_id("rs_"), "summary": [], "content": []}
            item["encrypted_content"] = None
        else:
            item = {"type": "message", "id": new_id("msg_"), "role": "assistant", "content": []}
        item["status"] = "in_progress"
        self.finished.append(item)
        yield {"type": "response.output_item.added", "output_index": self._index, "item": _copy(item)}
        if isinstance(kind, int):
            return
        part: dict[str, Any] = {"type": _TEXTS[kind], "text": ""}
        if kind == "message":
            part.update(annotations=[], logprobs=[])
        item["content"].append(part)
        yield {"type": "response.content_part.added", **self._place(), "part": dict(part)}


_TEXTS = {"reasoning": "reasoning_text", "message": "output_text"}


def _copy(item: dict[str, Any]) -> dict[str, Any]:
    if "content" not in item:
        return dict(item)
    return {**item, "content": [dict(part) for part in item["content"]]}


def _status(finish_reason: str | None) -> str:
    return "incomplete" if finish_reason == "length" else "completed"


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached},
        "output_tokens": usage.answers,
        "output_tokens_details": {"reasoning_tokens": usage.thoughts},
        "total_tokens": usage.prompt + usage.answers,
    }

"""The assistant's turns that answer a conversation, whichever protocol it came in."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from step3.server.answering import Answering, Logprobs, Usage, read_output
from step3.server.reasoning import ReasoningStream
from step3.server.tool_calls import ToolCallStream


@dataclass(frozen=True)
class Question:
    """A conversation that is to be answered, as the engine's process takes it.

    Attributes:
        messages: as `step3.server.conversation` makes them.
        tools: that the model is told of, in OpenAI's shape.
        forced_tool: "required", the name of the function that is to be called, or None.
        parallel: whether several calls may be made.
        params: of `SamplingParams`.
        template: variables of the chat template.
        thinks: whether the model thinks before it answers.
        thinking_budget: tokens that it may think at most; None for as many as it likes.
        shows_thinking: whether the client is told its thoughts.
        answers: how many are asked for.
        is_streamed: whether they are given as they grow.
        priority: smaller goes first.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    forced_tool: str | None = None
    parallel: bool = True
    params: Mapping[str, Any] = field(default_factory=dict)
    template: Mapping[str, Any] = field(default_factory=dict)
    thinks: bool = True
    thinking_budget: int | None = None
    shows_thinking: bool = True
    answers: int = 1
    is_streamed: bool = False
    priority: int = 0

    def call(self) -> dict[str, Any]:
        """The arguments of the engine's "chat"."""
        template = dict(self.template) if self.thinks else {**self.template, "enable_thinking": False}
        return {
            "messages": self.messages,
            "tools": self.tools,
            "template": template,
            "tool_choice": self.forced_tool,
            "parallel": self.parallel,
            "params": dict(self.params),
            "thinking_budget": self.thinking_budget if self.thinks else 0,
            "stream": self.is_streamed,
            "priority": self.priority,
        }


@dataclass(frozen=True)
class TurnDelta:
    """What a piece of text adds to a turn: to its reasoning, to its content, or to the call number `call`.

    Attributes:
        name: of the function, in a call's first delta and no other.
        arguments: a piece of the JSON text of its arguments.
    """

    reasoning: str = ""
    content: str = ""
    call: int | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True)
class TurnPiece:
    """What one of the turns has grown by.

    Attributes:
        index: which turn.
        finish_reason: "stop", "tool_calls", "length" or "abort" in its last piece.
        stop: the stop string that ended it.
    """

    index: int
    deltas: list[TurnDelta]
    finish_reason: str | None
    stop: str | None
    logprobs: Logprobs | None


class TurnReader:
    """Reads one turn's text: reasoning, then content with tool calls."""

    def __init__(
        self, in_reasoning: bool, tools: Sequence[Mapping[str, Any]] | None, shows_reasoning: bool
    ) -> None:
        self._reasoning = ReasoningStream(in_reasoning)
        self._tools = None if tools is None else ToolCallStream(tools)
        self._shows_reasoning = shows_reasoning
        self.has_called = False

    def push(self, text: str, is_last: bool) -> list[TurnDelta]:
        """What `text` adds, in order; the last piece also brings what was held back."""
        found: list[TurnDelta] = []
        for part in self._reasoning.push(text) + (self._reasoning.finish() if is_last else []):
            if part.reasoning and self._shows_reasoning:
                found.append(TurnDelta(reasoning=part.reasoning))
            if part.content:
                self._read_content(part.content, found)
        if is_last and self._tools is not None:
            self._take_calls(self._tools.finish(), found)
        return found

    def _read_content(self, text: str, found: list[TurnDelta]) -> None:
        if self._tools is None:
            found.append(TurnDelta(content=text))
        else:
            self._take_calls(self._tools.push(text), found)

    def _take_calls(self, deltas: Sequence[Any], found: list[TurnDelta]) -> None:
        for delta in deltas:
            if delta.content:
                found.append(TurnDelta(content=delta.content))
            if delta.index is not None:
                self.has_called = True
                found.append(TurnDelta(call=delta.index, name=delta.name, arguments=delta.arguments or ""))


class Turns:
    """The turns that answer one question, and what they used."""

    def __init__(self, answering: Answering, question: Question) -> None:
        self._answering, self._question = answering, question
        self._readers: dict[int, TurnReader] = {}
        self._in_reasoning = False
        self.usage = Usage()

    async def pieces(self) -> AsyncGenerator[TurnPiece, None]:
        """The turns as they grow, or each as one piece where the question is not streamed.

        Raises:
            RequestFault: there is no room, or the engine refuses or fails.
        """
        answering, question = self._answering, self._question
        with answering.room(question.answers):
            async with aclosing(answering.items("chat", question.call())) as items:
                async for item in items:
                    if isinstance(item, dict):
                        self._in_reasoning = item["in_reasoning"]
                        continue
                    self.usage.prompt, self.usage.cached, _ = item
                    for piece in read_output(item, self.usage):
                        reader = self._reader(piece.index)
                        deltas = reader.push(piece.text, piece.finish_reason is not None)
                        reason = piece.finish_reason
                        if reason == "stop" and reader.has_called:
                            reason = "tool_calls"
                        yield TurnPiece(piece.index, deltas, reason, piece.stop, piece.logprobs)

    def _reader(self, index: int) -> TurnReader:
        if index not in self._readers:
            question = self._question
            self._readers[index] = TurnReader(self._in_reasoning, question.tools, question.shows_thinking)
        return self._readers[index]

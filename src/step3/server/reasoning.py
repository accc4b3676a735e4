"""Reasoning and answer in what the model writes, whole or piece by piece.

The prompt already opens `<think>`, so a text begins inside the reasoning. Up to the first `</think>` it is
reasoning; everything behind is the answer, whatever it holds. The one line break that the chat template puts
on either side of `</think>`, and behind `<think>`, belongs to the tag. A text without `</think>` is all
reasoning: the model was cut off before it began to answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from step3.server.markers import Markers

THINK = "<think>"
THINK_END = "</think>"

_END = Markers("\n" + THINK_END, THINK_END)


@dataclass(frozen=True)
class ReasoningDelta:
    """What a piece of text adds: to the reasoning or to the content."""

    reasoning: str | None = None
    content: str | None = None


def split(text: str, starts_in_reasoning: bool = True) -> tuple[str, str]:
    """The reasoning and the content of a whole text: what `ReasoningStream` gives, put together."""
    stream = ReasoningStream(starts_in_reasoning)
    deltas = [*stream.push(text), *stream.finish()]
    return (
        "".join(delta.reasoning or "" for delta in deltas),
        "".join(delta.content or "" for delta in deltas),
    )


class _Place(Enum):
    """Where in the text the reader is."""

    START = auto()
    """Before anything but white space."""
    REASONING_START = auto()
    """Right behind `<think>`."""
    REASONING = auto()
    CONTENT_START = auto()
    """Right behind `</think>`."""
    CONTENT = auto()


class ReasoningStream:
    """Reads a text piece by piece; how it is cut does not change what is reasoning and what is content.

    Time is linear in the text.

    Args:
        starts_in_reasoning: whether the prompt opened `<think>`. A `<think>` at the start of the text opens
            the reasoning in either case and belongs to neither part, nor does white space before it.
    """

    def __init__(self, starts_in_reasoning: bool = True) -> None:
        self._without_think = _Place.REASONING if starts_in_reasoning else _Place.CONTENT
        self._place = _Place.START
        self._blank: list[str] = []
        self._held = ""

    def push(self, text: str) -> list[ReasoningDelta]:
        """What `text` adds, as far as it is certain."""
        text, self._held = self._held + text, ""
        if self._place is _Place.START:
            text = self._read_start(text)
        if self._place is _Place.REASONING_START and text:
            text = text.removeprefix("\n")
            self._place = _Place.REASONING
        reasoning = ""
        if self._place is _Place.REASONING:
            reasoning, text = self._read_reasoning(text)
        if self._place is _Place.CONTENT_START and text:
            text = text.removeprefix("\n")
            self._place = _Place.CONTENT
        return _deltas(reasoning, text if self._place is _Place.CONTENT else "")

    def finish(self) -> list[ReasoningDelta]:
        """What the end of the text makes certain; call it once, behind the last `push`."""
        rest, self._held = "".join(self._blank) + self._held, ""
        self._blank.clear()
        if self._place is _Place.START:
            self._place = self._without_think
        return _deltas(rest, "") if self._place is _Place.REASONING else _deltas("", rest)

    def _read_start(self, text: str) -> str:
        """Passes over white space and a `<think>`; returns the text to read on with."""
        visible = text.lstrip()
        self._blank.append(text[: len(text) - len(visible)])
        if visible.startswith(THINK):
            self._place = _Place.REASONING_START
            text = visible.removeprefix(THINK)
        elif THINK.startswith(visible):
            self._held = visible
            return ""
        else:
            self._place = self._without_think
            text = "".join(self._blank) + visible
        self._blank.clear()
        return text

    def _read_reasoning(self, text: str) -> tuple[str, str]:
        """The reasoning at the start of `text`, and the text behind the tag that ends it."""
        found = _END.find(text)
        if found.word:
            self._place = _Place.CONTENT_START
        else:
            self._held = text[found.plain_end :]
        return text[: found.plain_end], text[found.word_end :]


def _deltas(reasoning: str, content: str) -> list[ReasoningDelta]:
    deltas = [ReasoningDelta(reasoning=reasoning)] if reasoning else []
    return [*deltas, ReasoningDelta(content=content)] if content else deltas

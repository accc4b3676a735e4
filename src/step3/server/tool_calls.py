"""Tool calls in what the model writes, whole or piece by piece.

    <｜tool_calls_begin｜>
    <｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="get_weather">
    <steptml:parameter name="city">Tokyo</steptml:parameter>
    </steptml:invoke><｜tool_call_end｜>
    <｜tool_calls_end｜>

Text outside such blocks is content and kept to the character. Inside a block only `<steptml:...>` matters:
line breaks, the marks of single calls and anything else between calls are optional and dropped.

What the format leaves open is decided so:

- A call of a tool that nobody offered is passed on, its values as strings: the client can answer that there
  is no such tool, and the model can mend it. A call without a name is dropped.
- A value runs to its `</steptml:parameter>` and may hold any other markup. If that tag is missing, the
  value ends at its first `</steptml:invoke>`, `<｜tool_call_end｜>` or `<｜tool_calls_end｜>`. The tag counts
  as missing when the text ends or another call plainly begins (see `_BETWEEN_CALLS`) before it comes.
- Of a parameter given twice the first value counts: it may have been streamed already.
- A call cut off by the end of the text is closed with what it has. A string keeps its beginning; any other
  value that is cut off is left out, as half a number is a wrong number. That the text was cut off is for the
  finish reason to say.
- The beginning of a mark at the end of the text is dropped from its third character on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import groupby
from typing import Any, NamedTuple

from step3.server.markers import Markers
from step3.server.tool_arguments import Parameters, cast, json_text, parameters_by_tool

CALLS_BEGIN = "<｜tool_calls_begin｜>"
CALLS_END = "<｜tool_calls_end｜>"
CALL_BEGIN = "<｜tool_call_begin｜>"
CALL_END = "<｜tool_call_end｜>"
SEPARATOR = "<｜tool_sep｜>"
INVOKE = '<steptml:invoke name="'
INVOKE_END = "</steptml:invoke>"
PARAMETER = '<steptml:parameter name="'
PARAMETER_END = "</steptml:parameter>"
NAME_END = '">'

_MARKUP = (
    *(CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, SEPARATOR),
    *(INVOKE, INVOKE_END, PARAMETER, PARAMETER_END),
)
_KEPT_BEGINNING = 2


@dataclass(frozen=True)
class ToolCall:
    """A call that the model made; `arguments` is the JSON text of an object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ToolCallDelta:
    """What a piece of text adds: to the content, or to the call number `index`.

    A call's first delta, and no other, has its `name`. Its `arguments` are pieces of one JSON text, complete
    when the next call begins or the stream is finished.
    """

    content: str | None = None
    index: int | None = None
    name: str | None = None
    arguments: str | None = None


def parse(text: str, tools: Sequence[Mapping[str, Any]] | None = None) -> tuple[str, list[ToolCall]]:
    """The content and the calls of a whole answer: what `ToolCallStream` gives, put together.

    Args:
        text: the answer behind the reasoning; nothing in it is an error.
        tools: the tools offered, as an OpenAI client sends them or their `function` parts alone.
    """
    stream = ToolCallStream(tools)
    content: list[str] = []
    names: list[str] = []
    arguments: list[list[str]] = []
    for delta in [*stream.push(text), *stream.finish()]:
        if delta.content is not None:
            content.append(delta.content)
        if delta.name is not None:
            names.append(delta.name)
            arguments.append([])
        if delta.arguments is not None:
            arguments[-1].append(delta.arguments)
    calls = [ToolCall(name, "".join(pieces)) for name, pieces in zip(names, arguments, strict=True)]
    return "".join(content), calls


class _Place(Enum):
    """Where in the text the reader is."""

    CONTENT = auto()
    BLOCK = auto()
    TOOL_NAME = auto()
    CALL = auto()
    PARAMETER_NAME = auto()
    VALUE = auto()
    DOUBT = auto()
    """In a value or behind its end, whichever its closing tag will tell."""


_ALL = Markers(*_MARKUP)
_NAME = Markers(NAME_END, *_MARKUP)
_SOUGHT = {
    _Place.CONTENT: Markers(CALLS_BEGIN),
    _Place.BLOCK: Markers(INVOKE, CALLS_END),
    _Place.TOOL_NAME: _NAME,
    _Place.CALL: _ALL,
    _Place.PARAMETER_NAME: _NAME,
    _Place.VALUE: Markers(PARAMETER_END, INVOKE_END, CALL_END, CALLS_END),
    _Place.DOUBT: _ALL,
}


class _Event(NamedTuple):
    """A piece of content (of no call), a call's name, or a piece of its arguments."""

    call: int | None
    name: str | None
    text: str


class ToolCallStream:
    """Reads an answer piece by piece; how it is cut changes neither content nor calls.

    String values are given out as they come, others when they end. Time is linear in the text.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None = None) -> None:
        self._tools = parameters_by_tool(tools)
        self._place = _Place.CONTENT
        self._held = ""
        self._events: list[_Event] = []
        self._calls = 0
        self._call: _CallWriter | None = None
        self._name: list[str] = []
        self._doubt: _Doubt | None = None
        self._no_closing_tag = False

    def push(self, text: str) -> list[ToolCallDelta]:
        """What `text` adds, as far as it is certain."""
        self._held = self._read(self._held + text)
        return self._take_deltas()

    def finish(self) -> list[ToolCallDelta]:
        """What the end of the text makes certain; call it once, behind the last `push`."""
        held, self._held = self._held, ""
        if self._doubt:
            held = self._read_as_no_value(self._doubt.text + held)
        if 0 < len(held) <= _KEPT_BEGINNING:
            self._read_plain(held)
        self._close_call()
        return self._take_deltas()

    def _take_deltas(self) -> list[ToolCallDelta]:
        deltas = []
        for index, group in groupby(self._events, key=lambda event: event.call):
            events = list(group)
            text = "".join(event.text for event in events)
            if index is None:
                deltas.append(ToolCallDelta(content=text))
            else:
                deltas.append(ToolCallDelta(index=index, name=events[0].name, arguments=text or None))
        self._events.clear()
        return deltas

    def _read(self, text: str) -> str:
        """Reads all of `text` but the beginning of a mark at its end, which is returned."""
        position = 0
        while True:
            found = _SOUGHT[self._place].find(text, position)
            if found.plain_end > position:
                self._read_plain(text[position : found.plain_end])
            if found.word is None:
                return text[found.plain_end :]
            self._read_mark(found.word)
            position = found.word_end

    def _read_plain(self, text: str) -> None:
        if self._place is _Place.CONTENT:
            self._events.append(_Event(None, None, text))
        elif self._place in (_Place.TOOL_NAME, _Place.PARAMETER_NAME):
            self._name.append(text)
        elif self._place is _Place.VALUE:
            self._write_value(text)
        elif self._doubt:
            self._doubt.plain(text)

    def _read_mark(self, mark: str) -> None:
        if self._place is _Place.CONTENT:
            self._place = _Place.BLOCK
        elif self._place is _Place.BLOCK:
            self._read_mark_in_block(mark)
        elif self._place in (_Place.TOOL_NAME, _Place.PARAMETER_NAME):
            self._read_mark_in_name(mark)
        elif self._place is _Place.CALL:
            self._read_mark_in_call(mark)
        elif self._place is _Place.VALUE:
            self._read_mark_in_value(mark)
        elif self._doubt:
            self._read_mark_in_doubt(mark, self._doubt)

    def _read_mark_in_block(self, mark: str) -> None:
        if mark == INVOKE:
            self._place = _Place.TOOL_NAME
        elif mark == CALLS_END:
            self._place = _Place.CONTENT

    def _read_mark_in_name(self, mark: str) -> None:
        name = "".join(self._name)
        self._name.clear()
        is_tool = self._place is _Place.TOOL_NAME
        if mark != NAME_END:
            self._place = _Place.BLOCK if is_tool else _Place.CALL
            self._read_mark(mark)
        elif is_tool:
            self._open_call(name)
            self._place = _Place.CALL
        elif self._call:
            self._call.begin_value(name)
            self._place = _Place.VALUE

    def _read_mark_in_call(self, mark: str) -> None:
        if mark == PARAMETER:
            self._place = _Place.PARAMETER_NAME
        elif mark not in (PARAMETER_END, SEPARATOR):
            self._close_call()
            self._place = _Place.BLOCK
            self._read_mark(mark)

    def _read_mark_in_value(self, mark: str) -> None:
        if mark == PARAMETER_END or self._no_closing_tag:
            self._end_value()
            if mark != PARAMETER_END:
                self._read_mark(mark)
        else:
            self._place = _Place.DOUBT
            self._doubt = _Doubt(mark)

    def _read_mark_in_doubt(self, mark: str, doubt: _Doubt) -> None:
        if mark == PARAMETER_END:
            self._write_value(doubt.text)
            self._end_value()
            return
        doubt.mark(mark)
        if doubt.is_settled:
            value, rest = doubt.split()
            self._write_value(value)
            self._read_as_no_value(rest)

    def _read_as_no_value(self, text: str) -> str:
        """Ends the value in doubt and reads `text`, which holds no value's closing tag, behind it."""
        self._end_value()
        self._no_closing_tag = True
        held = self._read(text)
        self._no_closing_tag = False
        return held

    def _write_value(self, text: str) -> None:
        if self._call:
            self._call.write(text)

    def _end_value(self) -> None:
        if self._call:
            self._call.end_value()
        self._doubt = None
        self._place = _Place.CALL

    def _open_call(self, name: str) -> None:
        events = self._events if name.strip() else []
        self._call = _CallWriter(self._calls, name, self._tools.get(name) or Parameters(), events)
        self._calls += bool(name.strip())

    def _close_call(self) -> None:
        if self._call:
            self._call.close()
        self._call = None


_BETWEEN_CALLS: dict[tuple[str, str], tuple[str, ...] | None] = {
    (INVOKE_END, CALL_END): ("",),
    (CALL_END, CALL_BEGIN): ("",),
    (CALL_END, CALLS_END): ("",),
    (CALLS_END, CALLS_BEGIN): None,
    (CALLS_BEGIN, CALL_BEGIN): ("",),
    (CALL_BEGIN, SEPARATOR): ("", "function"),
    (CALL_BEGIN, INVOKE): ("", "function"),
    (SEPARATOR, INVOKE): ("",),
}
"""Which mark follows which from the end of a call to the next one's name, and what may stand between them but
for white space (None: any text)."""


class _Doubt:
    """Text that begins with what may be the end of a value whose closing tag is missing.

    It is, when the closing tag does not come at all. It is not, when it comes; unless another call plainly
    begins before: the marks of `_BETWEEN_CALLS` from the end of a call to the next tool's name.
    """

    def __init__(self, mark: str) -> None:
        self._pieces: list[str] = []
        self._between: list[str] = []
        self._last = ""
        self._call_end = 0
        self.mark(mark)

    @property
    def is_settled(self) -> bool:
        """Whether the text ends by beginning another call."""
        return self._last == INVOKE

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def split(self) -> tuple[str, str]:
        """The text up to the end of the call before the one that has begun, and from there on."""
        return "".join(self._pieces[: self._call_end]), "".join(self._pieces[self._call_end :])

    def plain(self, text: str) -> None:
        self._pieces.append(text)
        self._between.append(text)

    def mark(self, mark: str) -> None:
        between = "".join(self._between).strip()
        self._between.clear()
        allowed = _BETWEEN_CALLS.get((self._last, mark), ())
        if allowed is None or between in allowed:
            self._last = mark
        else:
            self._last = mark if mark in (INVOKE_END, CALL_END) else ""
            self._call_end = len(self._pieces)
        self._pieces.append(mark)


class _CallWriter:
    """Writes one call's name and the JSON of its arguments into `events`, as early as it is certain."""

    def __init__(self, index: int, name: str, parameters: Parameters, events: list[_Event]) -> None:
        self._index = index
        self._parameters = parameters
        self._events = events
        self._written: set[str] = set()
        self._parameter = ""
        self._value: list[str] | None = None
        self._is_text = False
        self._is_repeated = False
        events.append(_Event(index, name, ""))

    def begin_value(self, parameter: str) -> None:
        self._parameter = parameter
        self._is_repeated = parameter in self._written
        self._is_text = self._parameters.type_of(parameter).is_text
        self._value = []
        if self._is_text and not self._is_repeated:
            self._write_key()
            self._emit('"')

    def write(self, text: str) -> None:
        """Adds to the value begun last."""
        if self._is_repeated:
            return
        if self._is_text:
            self._emit(json_text(text)[1:-1])
        elif self._value is not None:
            self._value.append(text)

    def end_value(self) -> None:
        if self._is_repeated or self._value is None:
            pass
        elif self._is_text:
            self._emit('"')
        else:
            self._write_key()
            self._emit(cast("".join(self._value), self._parameters.type_of(self._parameter)))
        self._value = None

    def close(self) -> None:
        """Ends the arguments; of a value still open only a string's beginning is kept."""
        if self._value is not None and self._is_text and not self._is_repeated:
            self._emit('"')
        self._emit("}" if self._written else "{}")

    def _write_key(self) -> None:
        self._emit(f"{', ' if self._written else '{'}{json_text(self._parameter)}: ")
        self._written.add(self._parameter)

    def _emit(self, text: str) -> None:
        self._events.append(_Event(self._index, None, text))

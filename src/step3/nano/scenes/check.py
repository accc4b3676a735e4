"""Is an answer right? One strict rule per category."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from step3.nano.scenes.draw import COLOURS, PLACES, SHAPES, SIZES
from step3.nano.scenes.sample import Sample, ToolCall
from step3.nano.scenes.talk import TOPICS

_COUNTS = {
    "no": "0",
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
}
_THING = re.compile(
    rf"\b({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) (?:at|in) the "
    rf"({'|'.join(sorted(PLACES, key=len, reverse=True))})\b"
)
_CALL = re.compile(
    r"<｜tool_calls_begin｜>\s*<｜tool_call_begin｜>function<｜tool_sep｜>"
    r'<steptml:invoke name="([^"]+)">\s*(.*?)\s*</steptml:invoke>'
    r"<｜tool_call_end｜>\s*<｜tool_calls_end｜>",
    re.DOTALL,
)
_ARGUMENT = re.compile(r'<steptml:parameter name="([^"]+)">(.*?)</steptml:parameter>', re.DOTALL)
_SIDES = ("left", "right", "above", "below")


def final_answer(text: str) -> str:
    """What stands after the reasoning; all of `text` where there is no `</think>`."""
    return text.rsplit("</think>", 1)[-1].split("<|EOT|>", 1)[0].strip()


def is_right(sample: Sample, text: str) -> bool:
    """Does the model's `text` (reasoning and answer, or the answer alone) answer the question?

    An answer that names the right thing beside a wrong one is wrong.
    """
    answer = final_answer(text)
    if sample.tool_call is not None:
        return parse_call(answer) == sample.tool_call
    if "<｜tool_call" in answer:
        return False
    return _CHECKS[sample.category](sample, answer)


def parse_call(answer: str) -> ToolCall | None:
    """The one tool call that `answer` consists of, or None."""
    match = _CALL.fullmatch(answer)
    if match is None:
        return None
    if _ARGUMENT.sub("", match[2]).strip():
        return None
    return ToolCall(match[1], tuple(_ARGUMENT.findall(match[2])))


def _words(answer: str) -> list[str]:
    return re.findall(r"[a-z]+|-?\d+", answer.lower())


def _only(answer: str, options: Iterable[str], expected: str) -> bool:
    """Of `options`, does the answer name `expected` and no other?"""
    return {word for word in _words(answer) if word in set(options)} == {expected}


def _named(options: Iterable[str]) -> Callable[[Sample, str], bool]:
    return lambda sample, answer: _only(answer, options, sample.expected[0])


def _numbers(answer: str) -> list[str]:
    return re.findall(r"(?<!\d)-?\d+", answer)


def _count(sample: Sample, answer: str) -> bool:
    said = [_COUNTS.get(word, word) for word in _words(answer)]
    return {word for word in said if word.lstrip("-").isdigit()} == {sample.expected[0]}


def _number(sample: Sample, answer: str) -> bool:
    if sample.kind == "none":
        return not _numbers(answer) and "no number" in answer.lower()
    return _numbers(answer) == [sample.expected[0]]


def _sum(sample: Sample, answer: str) -> bool:
    return _numbers(answer.rsplit("=", 1)[-1]) == [sample.expected[0]]


def _position(sample: Sample, answer: str) -> bool:
    if sample.kind == "where":
        words = {word for word in _words(answer) if word in {"top", "bottom", "left", "right", "middle"}}
        return words == set(sample.expected[0].split())
    if sample.kind == "either":
        return _only(answer, _SIDES, sample.expected[0])
    return _only(answer, ("yes", "no"), sample.expected[0])


def _describe(sample: Sample, answer: str) -> bool:
    if sample.kind == "number":
        colour, number = sample.expected[0].split()
        return _numbers(answer) == [number] and _only(answer, COLOURS, colour)
    return sorted(" ".join(found) for found in _THING.findall(answer.lower())) == sorted(sample.expected)


def _marked(sample: Sample, answer: str) -> bool:
    return [topic.mark for topic in TOPICS if topic.mark in answer] == [sample.expected[0]]


def _exact(sample: Sample, answer: str) -> bool:
    return answer == sample.expected[0]


_CHECKS: dict[str, Callable[[Sample, str], bool]] = {
    "colour": _named(COLOURS),
    "shape": _named(SHAPES),
    "size": _named(SIZES),
    "exists": _named(("yes", "no")),
    "count": _count,
    "number": _number,
    "sum": _sum,
    "position": _position,
    "describe": _describe,
    "greeting": _marked,
    "identity": _marked,
    "unknown": _marked,
    "tool": lambda sample, answer: False,
    "tool_result": _exact,
}

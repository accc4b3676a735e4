"""What form a request's output must have."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from step3.engine.sampling import field_checks as check
from step3.engine.sampling.errors import ParamsError

MAX_SPECIFICATION_CHARS = 256 * 1024
MAX_NESTING = 64
TAG_NESTING = 24
"""Levels that a structural tag may have around the schemas in it."""
MAX_REGEX_CHARS = 8 * 1024
MAX_CHOICES = 4096

KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


@dataclass(frozen=True)
class StructuredOutputsParams:
    """The form of an output: exactly one of json, regex, choice, grammar, json_object and structural_tag.

    Names are vLLM's. JSON given as objects is kept as text, so that equal forms are equal keys of a cache.

    Attributes:
        json: a JSON schema, as text or as an object.
        regex: a regular expression that the whole output matches.
        choice: the output is one of these strings.
        grammar: an EBNF grammar whose start is `root`.
        json_object: True asks for any JSON object.
        structural_tag: text with tags and what stands between them, in xgrammar's notation.
        disable_any_whitespace: JSON is written in one way, without white space that could be left out.
        disable_additional_properties: objects hold no properties but those that the schema names, which is
            how schemas are read anyway unless they allow more.
        whitespace_pattern: not supported, None.

    Raises:
        ParamsError: none or several are given, or one is empty, too large or malformed.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: tuple[str, ...] | list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    structural_tag: str | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ParamsError(f"structured_outputs needs exactly one of {', '.join(KINDS)}, found {found}")
        if self.whitespace_pattern is not None:
            raise ParamsError(
                f"whitespace_pattern {check.shown(self.whitespace_pattern)} is not supported: "
                "use disable_any_whitespace=True, or a grammar"
            )
        for name in ("disable_any_whitespace", "disable_additional_properties"):
            check.flag(name, getattr(self, name))
        object.__setattr__(self, given[0], _CHECKS[given[0]](given[0], getattr(self, given[0])))

    @property
    def kind(self) -> str:
        """Which of `KINDS` is given."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "StructuredOutputsParams":
        """The parameters out of a request's JSON; an unknown name is an error."""
        known = {field.name for field in fields(cls)}
        for name in options:
            if name not in known:
                raise ParamsError(
                    f"structured_outputs has no option {check.shown(name)}, it has {', '.join(sorted(known))}"
                )
        return cls(**options)


def _schema(name: str, value: Any) -> str:
    if not isinstance(value, str | Mapping):
        raise ParamsError(f"{name} must be a JSON object or its text, found {check.shown(value)}")
    try:
        text = _bounded(name, value if isinstance(value, str) else _dump(name, value))
        parsed = json.loads(text)
    except RecursionError:
        raise _too_deep(name) from None
    except json.JSONDecodeError as error:
        raise ParamsError(f"{name} is not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise ParamsError(f"{name} must be a JSON object, found {check.shown(text)}")
    if _nests_deeper(parsed, MAX_NESTING + (TAG_NESTING if name == "structural_tag" else 0)):
        raise _too_deep(name)
    return text


def _dump(name: str, value: Mapping[str, Any]) -> str:
    """JSON text, cut when it is too long: an object that shares its parts can be huge as text."""
    parts, length = [], 0
    try:
        for part in json.JSONEncoder(ensure_ascii=False, allow_nan=False).iterencode(dict(value)):
            parts.append(part)
            length += len(part)
            if length > MAX_SPECIFICATION_CHARS:
                break
    except (TypeError, ValueError) as error:
        raise ParamsError(f"{name} cannot be written as JSON: {error}") from None
    return "".join(parts)


def _too_deep(name: str) -> ParamsError:
    return ParamsError(f"{name} is nested too deeply: at most {MAX_NESTING} levels are allowed")


def _nests_deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        inside = (
            inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)
        )
        level = [inner for inner in inside if isinstance(inner, dict | list)]
    return bool(level)


def _regex(name: str, value: Any) -> str:
    return _bounded(name, value, MAX_REGEX_CHARS)


def _choice(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise ParamsError(f"{name} must be a list of strings, found the string {check.shown(value)}")
    choices = check.texts(name, value, MAX_CHOICES, MAX_SPECIFICATION_CHARS)
    if not choices:
        raise ParamsError(f"{name} is empty: give at least one string")
    _bounded(name, "".join(choices))
    return choices


def _json_object(name: str, value: Any) -> bool:
    if check.flag(name, value) is False:
        raise ParamsError(f"{name} must be True: leave structured_outputs out to have no form")
    return True


def _bounded(name: str, text: Any, longest: int = MAX_SPECIFICATION_CHARS) -> str:
    if not isinstance(text, str):
        raise ParamsError(f"{name} must be a string, found {check.shown(text)}")
    if not text:
        raise ParamsError(f"{name} is empty")
    if len(text) > longest:
        raise ParamsError(f"{name} has {len(text)} characters, at most {longest} are allowed")
    if "\0" in text:
        raise ParamsError(f"{name} contains a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ParamsError(f"{name} is not valid Unicode: {error.reason}") from None
    return text


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "json": _schema,
    "regex": _regex,
    "choice": _choice,
    "grammar": _bounded,
    "json_object": _json_object,
    "structural_tag": _schema,
}

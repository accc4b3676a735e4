"""The JSON type of a tool's parameter, and a value's text cast to it.

The model writes every value as text; only the tool's JSON schema tells a number from a string of digits.
Schemas come from clients: whatever is wrong in one, or nests too deep, says nothing about the type.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

MAX_SCHEMA_DEPTH = 64
MAX_VALUE_DEPTH = 64

_TYPE_OF: dict[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
    list: "array",
    dict: "object",
}
_JSON_TYPES = frozenset(_TYPE_OF.values())
_SPELLED = {"true": True, "false": False, "null": None, "none": None}
_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class ValueType:
    """What a schema admits: JSON type names ("number" with "integer" beside it), and strings it lists.

    `strings` are the members of an enumeration that are strings; they win over a cast.
    """

    types: frozenset[str]
    strings: frozenset[str] = frozenset()

    @property
    def is_text(self) -> bool:
        """Whether a value is a string whatever it holds."""
        return self.types == {"string"}


TEXT = ValueType(frozenset({"string"}))


class Parameters:
    """The parameters of one tool, from its JSON schema (any value; what is no schema says nothing)."""

    def __init__(self, schema: Any = None) -> None:
        self._root = schema
        self._types: dict[str, ValueType] = {}
        self._references: dict[str, ValueType | None] = {}

    def type_of(self, name: str) -> ValueType:
        """The type of the parameter `name`; a string when the schema says nothing."""
        if name not in self._types:
            found = list(self._schemas_of(name))
            admitted = self._admitted({"anyOf": found}, 0) if found else None
            self._types[name] = admitted or TEXT
        return self._types[name]

    def _schemas_of(self, name: str) -> Iterator[Any]:
        """The schemas of the property `name` in the root, in what it refers to and in what it combines."""
        waiting = [self._root]
        followed: set[str] = set()
        others: list[Any] = []
        is_named = False
        for schema in waiting:
            if not isinstance(schema, Mapping):
                continue
            properties = schema.get("properties")
            if isinstance(properties, Mapping) and name in properties:
                is_named = True
                yield properties[name]
            if "additionalProperties" in schema:
                others.append(schema["additionalProperties"])
            for key in ("allOf", "anyOf", "oneOf"):
                waiting.extend(_items(schema.get(key)))
            reference = schema.get("$ref")
            if isinstance(reference, str) and reference not in followed:
                followed.add(reference)
                waiting.append(self._target(reference))
        if not is_named:
            yield from others

    def _admitted(self, schema: Any, depth: int) -> ValueType | None:
        """What `schema` admits; None when it does not say."""
        if not isinstance(schema, Mapping) or depth > MAX_SCHEMA_DEPTH:
            return None
        said = [_named(schema), _enumerated(schema)]
        if isinstance(schema.get("$ref"), str):
            said.append(self._referred(schema["$ref"], depth))
        for key in ("anyOf", "oneOf"):
            if members := _items(schema.get(key)):
                said.append(_either(self._admitted(member, depth + 1) for member in members))
        said.extend(self._admitted(member, depth + 1) for member in _items(schema.get("allOf")))
        admitted = _all_of(part for part in said if part)
        if admitted is None and "properties" in schema:
            admitted = ValueType(frozenset({"object"}))
        elif admitted is None and ("items" in schema or "prefixItems" in schema):
            admitted = ValueType(frozenset({"array"}))
        if admitted and schema.get("nullable") is True:
            return ValueType(admitted.types | {"null"}, admitted.strings)
        return admitted

    def _referred(self, reference: str, depth: int) -> ValueType | None:
        """What a reference admits, worked out once; a circle says nothing."""
        if reference not in self._references:
            self._references[reference] = None
            self._references[reference] = self._admitted(self._target(reference), depth + 1)
        return self._references[reference]

    def _target(self, reference: str) -> Any:
        """What a JSON pointer into this schema (`#/$defs/Name`) points at, or None."""
        path, target = reference.split("/"), self._root
        if path[0] != "#":
            return None
        for step in path[1:]:
            step = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(target, Mapping):
                target = target.get(step)
            elif isinstance(target, list) and step.isdecimal() and int(step[:9]) < len(target):
                target = target[int(step[:9])]
            else:
                return None
        return target


def parameters_by_tool(tools: Sequence[Mapping[str, Any]] | None) -> dict[str, Parameters]:
    """Each tool's parameters by its name.

    Args:
        tools: `{"type": "function", "function": {...}}`, or what stands in `function` alone (`{"name": ...,
            "parameters": ...}`).
    """
    by_name = {}
    for tool in tools or ():
        inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if isinstance(inner, Mapping) and isinstance(inner.get("name"), str):
            by_name[inner["name"]] = Parameters(inner.get("parameters"))
    return by_name


def cast(text: str, value_type: ValueType) -> str:
    """The JSON text of a value that the model wrote as `text`.

    A type other than string is tried first, so with string beside it only plain JSON is taken for anything
    else ("007" stays a string); without it, usual spellings are understood too (`True`, `+5`, `007`, `.5`).
    What fits no type stays a string, as do NaN, infinities and values nested deeper than
    `MAX_VALUE_DEPTH`.
    """
    if value_type.is_text or text in value_type.strings:
        return json_text(text)
    for value in _readings(text.strip(" \t\r\n"), value_type.types):
        if _TYPE_OF[type(value)] in value_type.types:
            return json_text(value)
    return json_text(text)


def json_text(value: Any) -> str:
    """`value` as JSON that is valid UTF-8 when encoded: only lone surrogates are escaped beyond need."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if text.isascii() else _SURROGATE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _readings(text: str, types: frozenset[str]) -> Iterator[Any]:
    """The values that `text` may mean, the plainest first."""
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        pass
    else:
        if not isinstance(value, str) and _is_shallow(value):
            yield value
            if isinstance(value, float) and value.is_integer() and "string" not in types:
                yield int(value)
    if "string" in types:
        return
    if text.lower() in _SPELLED:
        yield _SPELLED[text.lower()]
    if _INTEGER.fullmatch(text):
        yield int(text)
    elif _DECIMAL.fullmatch(text) and math.isfinite(value := float(text)):
        yield value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_VALUE_DEPTH + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, list | dict)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return True
    return False


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _named(schema: Mapping[str, Any]) -> ValueType | None:
    """What the keyword `type` says."""
    named = schema.get("type")
    types = {
        name.lower()
        for name in (named if isinstance(named, list) else [named])
        if isinstance(name, str) and name.lower() in _JSON_TYPES
    }
    return ValueType(frozenset(types | {"integer"} if "number" in types else types)) if types else None


def _enumerated(schema: Mapping[str, Any]) -> ValueType | None:
    """What the keywords `enum` and `const` say."""
    members = [*_items(schema.get("enum")), *([schema["const"]] if "const" in schema else [])]
    members = [member for member in members if type(member) in _TYPE_OF]
    if not members:
        return None
    types = frozenset(_TYPE_OF[type(member)] for member in members)
    return ValueType(types, frozenset(member for member in members if isinstance(member, str)))


def _either(members: Iterable[ValueType | None]) -> ValueType:
    """What at least one member admits; a member that says nothing admits a string."""
    known = [member or TEXT for member in members]
    return ValueType(
        frozenset().union(*(member.types for member in known)),
        frozenset().union(*(member.strings for member in known)),
    )


def _all_of(parts: Iterable[ValueType]) -> ValueType | None:
    """What every part admits; of two that contradict each other, the first is believed."""
    types: frozenset[str] | None = None
    strings: frozenset[str] = frozenset()
    for part in parts:
        types = part.types if types is None else (types & part.types or types)
        strings |= part.strings
    return None if types is None else ValueType(types, strings if "string" in types else frozenset())

"""The form of a tool call as Step3 writes it, for calls that a client demands.

The calls admitted are well-formed: a known function, its parameters in the order of its schema, the required
ones all there, and values that fit their types. Values are written as they stand in Step3's format: strings
as bare text, everything else as JSON.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from step3.engine.sampling.errors import ParamsError
from step3.engine.sampling.field_checks import shown, whole
from step3.engine.sampling.grammar import MAX_WHITESPACE, SPECIAL_MARK
from step3.engine.sampling.schema_support import unsupported_part
from step3.engine.sampling.structured_params import StructuredOutputsParams

CALLS_BEGIN, CALLS_END = "<｜tool_calls_begin｜>", "<｜tool_calls_end｜>"
CALL_BEGIN, CALL_END = "<｜tool_call_begin｜>", "<｜tool_call_end｜>"
SEPARATOR = "<｜tool_sep｜>"
PARAMETER_END = "</steptml:parameter>"

MAX_TOOLS = 128
MAX_LENGTH = 2**20
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")

Format: TypeAlias = dict[str, Any]
Schema: TypeAlias = Mapping[str, Any]

# Its tag ends it: whatever does not contain the closing tag, or a token that is no text.
_FREE_TEXT: Format = {"type": "any_text", "excludes": [SPECIAL_MARK]}


def tool_call_form(
    tools: Sequence[Mapping[str, Any]], choice: str = "required", parallel: bool = True
) -> StructuredOutputsParams:
    """The form of an answer that is nothing but tool calls.

    Args:
        tools: as in OpenAI's API, `{"type": "function", "function": {"name": …, "parameters": …}}`.
        choice: "required" for calls of any of the tools, or the name of the one to be called, once.
        parallel: whether "required" admits several calls.

    Raises:
        ParamsError: no tools, a malformed or unknown one, or parameters that a grammar cannot express.
    """
    functions = [_function(tool) for tool in tools]
    if not 1 <= len(functions) <= MAX_TOOLS:
        raise ParamsError(f"tools must hold 1 to {MAX_TOOLS} tools for a forced call, found {len(functions)}")
    if choice != "required":
        functions = [function for function in functions if function["name"] == choice]
        if not functions:
            raise ParamsError(f"tool_choice names {shown(choice)}, which is not among the tools")
    calls: Format = {"type": "or", "elements": [_call(function) for function in functions]}
    if choice == "required" and parallel:
        calls = {"type": "plus", "content": calls}
    # Behind its reasoning the model starts a new line.
    whole = _sequence(_regex("\n{0,2}"), _token(CALLS_BEGIN), _text("\n"), calls, _token(CALLS_END))
    return StructuredOutputsParams(structural_tag={"type": "structural_tag", "format": whole})


def _function(tool: Any) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ParamsError(f"a tool must be an object with a function that has a name, found {shown(tool)}")
    name, parameters = function["name"], function.get("parameters")
    if not _NAME.fullmatch(name):
        raise ParamsError(f"a tool's name must be letters, digits and _ . : / -, found {shown(name)}")
    schema = {} if parameters is None else parameters
    if not isinstance(schema, Mapping) or not isinstance(schema.get("properties", {}), Mapping):
        raise ParamsError(f"the parameters of tool {name} must be a JSON schema of an object")
    found = unsupported_part(schema)
    if found is not None:
        raise ParamsError(f"tool {name} cannot be forced: {found}, which a grammar cannot express")
    return {"name": name, "schema": schema}


def _call(function: Mapping[str, Any]) -> Format:
    name, schema = function["name"], function["schema"]
    required = _list_of(schema, "required")
    # A parameter that is required but not described may be anything.
    values = {**schema.get("properties", {})}
    values.update((str(parameter), True) for parameter in required if parameter not in values)
    parameters = []
    for parameter, value in values.items():
        if not parameter or re.search(r'["<>\n]', parameter):
            raise ParamsError(f"tool {name}: a parameter's name cannot hold \" < > or a line break")
        tag = {
            "type": "tag",
            "begin": f'<steptml:parameter name="{parameter}">',
            "content": _value(value, schema),
            "end": PARAMETER_END,
        }
        written = _sequence(tag, _text("\n"))
        parameters.append(written if parameter in required else {"type": "optional", "content": written})
    return _sequence(
        _token(CALL_BEGIN),
        _text("function"),
        _token(SEPARATOR),
        _text(f'<steptml:invoke name="{name}">\n'),
        *parameters,
        _text("</steptml:invoke>"),
        _token(CALL_END),
        _text("\n"),
    )


def _value(schema: Any, root: Schema, depth: int = 0) -> Format:
    """What stands between a parameter's tags.

    Args:
        root: the schema that `$ref` is looked up in.
        depth: of references and alternatives on the way here.
    """
    if depth > 16:
        raise ParamsError("a tool's parameters refer to each other in a circle")
    if not isinstance(schema, Mapping):
        return _FREE_TEXT
    if "$ref" in schema:
        return _value(_resolve(schema["$ref"], root), root, depth + 1)
    if "const" in schema:
        return _literal(schema["const"])
    if "enum" in schema:
        return _either([_literal(value) for value in _list_of(schema, "enum")])
    for keyword in ("anyOf", "oneOf", "allOf"):
        if keyword in schema:
            return _either([_value(one, root, depth + 1) for one in _list_of(schema, keyword)])
    kinds = schema.get("type", "string")
    if isinstance(kinds, list):
        return _either([_value({**schema, "type": kind}, root, depth + 1) for kind in kinds])
    return _string(schema) if kinds == "string" else _json(schema, root)


def _string(schema: Schema) -> Format:
    if "pattern" in schema:
        return _regex(str(schema["pattern"]))
    if "minLength" in schema or "maxLength" in schema:
        low = whole("minLength", schema.get("minLength", 0), 0, MAX_LENGTH)
        high = whole("maxLength", schema["maxLength"], low, MAX_LENGTH) if "maxLength" in schema else ""
        # Counting leaves no room to look for the closing tag, so these hold no < at all.
        return _regex(f"[^<]{{{low},{high}}}")
    return _FREE_TEXT


def _json(schema: Schema, root: Schema) -> Format:
    refers = "$ref" in json.dumps(schema, default=str)
    definitions = {name: root[name] for name in ("$defs", "definitions") if refers and name in root}
    return {
        "type": "json_schema",
        "json_schema": {**definitions, **schema},
        "max_whitespace_cnt": MAX_WHITESPACE,
    }


def _list_of(schema: Schema, keyword: str) -> list[Any]:
    listed = schema.get(keyword, [])
    if not isinstance(listed, list):
        raise ParamsError(f"{keyword} in a tool's parameters must be a list, found {shown(listed)}")
    return listed


def _literal(value: Any) -> Format:
    return _text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _either(formats: list[Format]) -> Format:
    if not formats:
        raise ParamsError("a tool's parameter has an enum or alternatives without any entry")
    if _FREE_TEXT in formats:
        return _FREE_TEXT
    return formats[0] if len(formats) == 1 else {"type": "or", "elements": formats}


def _resolve(reference: Any, root: Schema) -> Any:
    target: Any = root
    for name in str(reference).removeprefix("#").split("/")[1:]:
        name = name.replace("~1", "/").replace("~0", "~")
        if not isinstance(target, Mapping) or name not in target:
            raise ParamsError(f"a tool's parameters refer to {shown(reference)}, which they do not define")
        target = target[name]
    return target


def _sequence(*elements: Format) -> Format:
    return {"type": "sequence", "elements": list(elements)}


def _text(value: str) -> Format:
    return {"type": "const_string", "value": value}


def _regex(pattern: str) -> Format:
    return {"type": "regex", "pattern": pattern}


def _token(name: str) -> Format:
    return {"type": "token", "token": name}

"""The types that schemas admit, and texts cast to them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from step3.server.tool_arguments import Parameters, cast, parameters_by_tool


def cast_by(schema: Any, text: str, **root: Any) -> Any:
    """`text` cast to the type of a parameter with `schema`, as its JSON reads."""
    value_type = Parameters({"type": "object", "properties": {"x": schema}, **root}).type_of("x")
    return json.loads(cast(text, value_type), parse_constant=pytest.fail)


def same(left: Any, right: Any) -> bool:
    """Equality that tells 1 from 1.0 and from True."""
    return repr(left) == repr(right)


INTEGER = {"type": "integer"}
STRING_OR_NULL = {"anyOf": [{"type": "string"}, {"type": "null"}]}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "007", "007"),
        ({"type": "string"}, "null", "null"),
        ({"type": "string"}, '"quoted"', '"quoted"'),
        ({}, "007", "007"),
        (True, "7", "7"),
        (None, "7", "7"),
        ({"description": "a number"}, "7", "7"),
        ({"type": "widget"}, "7", "7"),
        (INTEGER, "7", 7),
        (INTEGER, "-7", -7),
        (INTEGER, "+7", 7),
        (INTEGER, "007", 7),
        (INTEGER, "\n 7 \n", 7),
        (INTEGER, "7.0", 7),
        (INTEGER, "7.5", "7.5"),
        (INTEGER, "seven", "seven"),
        (INTEGER, "", ""),
        (INTEGER, "true", "true"),
        (INTEGER, "٧", "٧"),
        (INTEGER, "1_000", "1_000"),
        (INTEGER, "123456789012345678901", 123456789012345678901),
        ({"type": "number"}, "7", 7),
        ({"type": "number"}, "7.0", 7.0),
        ({"type": "number"}, "-2.5e3", -2500.0),
        ({"type": "number"}, ".5", 0.5),
        ({"type": "number"}, "2.", 2.0),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "number"}, "-Infinity", "-Infinity"),
        ({"type": "number"}, "1e999", "1e999"),
        ({"type": "number"}, "inf", "inf"),
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, "False", False),
        ({"type": "boolean"}, "yes", "yes"),
        ({"type": "boolean"}, "1", "1"),
        ({"type": "null"}, "null", None),
        ({"type": "null"}, "None", None),
        ({"type": "array"}, '["007", 7, null]', ["007", 7, None]),
        ({"type": "array"}, "[1, NaN]", "[1, NaN]"),
        ({"type": "array"}, "[1e999]", "[1e999]"),
        ({"type": "array"}, "[1, 2", "[1, 2"),
        ({"type": "array"}, '{"a": 1}', '{"a": 1}'),
        ({"type": "object"}, '\n{"a": {"b": "<東>"}}\n', {"a": {"b": "<東>"}}),
        ({"type": "object"}, "{'a': 1}", "{'a': 1}"),
        ({"properties": {"a": {}}}, '{"a": 1}', {"a": 1}),
        ({"items": INTEGER}, "[1]", [1]),
    ],
)
def test_a_text_is_cast_to_the_type_it_fits_or_stays_a_string(schema, text, value):
    assert same(cast_by(schema, text), value)


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": ["integer", "null"]}, "null", None),
        ({"type": ["integer", "null"]}, "5", 5),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "None", "None"),
        ({"type": ["string", "integer"]}, "5", 5),
        ({"type": ["string", "integer"]}, "007", "007"),
        ({"type": ["string", "integer"]}, "5.0", "5.0"),
        ({"type": ["boolean", "string"]}, "true", True),
        ({"type": ["boolean", "string"]}, "True", "True"),
        ({"type": ["string", "object"]}, '{"a": 1}', {"a": 1}),
        ({"type": ["string", "object"]}, '"a"', '"a"'),
        (STRING_OR_NULL, "null", None),
        (STRING_OR_NULL, "5", "5"),
        ({"oneOf": [INTEGER, {"type": "array"}]}, "[5]", [5]),
        ({"anyOf": [INTEGER, {}]}, "five", "five"),
        ({"anyOf": [{"anyOf": [INTEGER]}, {"type": "null"}]}, "5", 5),
        ({"allOf": [{"description": "x"}, {"type": ["integer", "string"]}, INTEGER]}, "007", 7),
        ({"type": "object", "anyOf": [{"required": ["a"]}]}, '{"a": 1}', {"a": 1}),
        ({"type": "integer", "nullable": True}, "null", None),
    ],
)
def test_unions_take_the_plainest_json_that_fits(schema, text, value):
    assert same(cast_by(schema, text), value)


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"enum": ["a", "b"]}, "a", "a"),
        ({"enum": [1, 2, None]}, "2", 2),
        ({"enum": [1, 2, None]}, "null", None),
        ({"enum": [1, "1"]}, "1", "1"),
        ({"enum": [1, "2"]}, "1", 1),
        ({"type": ["integer", "string"], "enum": ["1", 2]}, "1", "1"),
        ({"type": ["integer", "string"], "enum": ["1", 2]}, "2", 2),
        ({"type": "string", "enum": [1, 2]}, "1", "1"),
        ({"type": "integer", "enum": [1, 2]}, "3", 3),
        ({"const": 5}, "5", 5),
        ({"const": "5"}, "5", "5"),
        ({"const": True}, "true", True),
        ({"enum": "abc"}, "5", "5"),
    ],
)
def test_enumerations_and_constants_give_the_type(schema, text, value):
    assert same(cast_by(schema, text), value)


@pytest.mark.parametrize(
    ("reference", "value"),
    [
        ("#/$defs/Count", 5),
        ("#/$defs/Alias", 5),
        ("#/$defs/a~1b%25", 5),
        ("#/$defs/List/anyOf/0", 5),
        ("#/$defs/List/anyOf/7", "5"),
        ("#/$defs/Missing", "5"),
        ("#/$defs/Circle", "5"),
        ("#", "5"),
        ("https://example.com/schema", "5"),
        ("Count", "5"),
    ],
)
def test_references_are_followed_inside_the_schema(reference, value):
    definitions = {
        "Count": INTEGER,
        "Alias": {"$ref": "#/$defs/Count"},
        "a/b%": INTEGER,
        "List": {"anyOf": [INTEGER]},
        "Circle": {"$ref": "#/$defs/Circle"},
    }
    assert same(cast_by({"$ref": reference}, "5", **{"$defs": definitions}), value)


def test_a_reference_to_itself_keeps_what_else_the_schema_says():
    node = {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/Node"}]}
    assert cast_by({"$ref": "#/$defs/Node"}, "5", **{"$defs": {"Node": node}}) == 5


def test_references_that_multiply_are_followed_once_each():
    definitions: dict[str, Any] = {"d0": INTEGER}
    for level in range(1, 60):
        definitions[f"d{level}"] = {"anyOf": [{"$ref": f"#/$defs/d{level - 1}"}] * 2}
    assert cast_by({"$ref": "#/$defs/d25"}, "5", **{"$defs": definitions}) == 5


def test_a_schema_nested_without_end_says_nothing():
    schema: Any = INTEGER
    for _ in range(500):
        schema = {"anyOf": [schema]}
    assert cast_by(schema, "5") == "5"


def test_properties_are_found_in_what_the_root_combines_and_refers_to():
    root = {
        "$ref": "#/$defs/Root",
        "allOf": [{"properties": {"b": INTEGER}}, {"$ref": "#/$defs/Root"}],
        "$defs": {"Root": {"properties": {"a": INTEGER}, "additionalProperties": {"type": "boolean"}}},
    }
    parameters = Parameters(root)
    assert [cast("1", parameters.type_of(name)) for name in "ab"] == ["1", "1"]
    assert cast("true", parameters.type_of("other")) == "true"


@pytest.mark.parametrize("root", [None, True, [], "x", {"properties": []}, {"additionalProperties": False}])
def test_a_parameter_that_no_schema_names_is_a_string(root):
    assert Parameters(root).type_of("x").is_text


def test_a_value_nested_too_deep_stays_a_string():
    fits, too_deep, far_too_deep = ("[" * depth + "]" * depth for depth in (60, 70, 200_000))
    assert isinstance(cast_by({"type": "array"}, fits), list)
    assert cast_by({"type": "array"}, too_deep) == too_deep
    assert cast_by({"type": "array"}, far_too_deep) == far_too_deep


def test_a_number_with_too_many_digits_stays_a_string():
    digits = "9" * 10_000
    assert cast_by(INTEGER, digits) == digits
    assert cast_by({"type": "number"}, digits) == digits


def test_tools_are_read_in_both_forms_and_broken_ones_passed_over():
    function = {"name": "a", "parameters": {"properties": {"x": INTEGER}}}
    bare = {"name": "b"}
    tools: list[Any] = [{"type": "function", "function": function}, bare, {}, 5, {"function": None}]
    by_tool = parameters_by_tool(tools)
    assert by_tool.keys() == {"a", "b"}
    assert not by_tool["a"].type_of("x").is_text
    assert parameters_by_tool(None) == {}


TYPES = ["string", "integer", "number", "boolean", "null", "array", "object"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
type_names = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
    list: "array",
    dict: "object",
}


@settings(deadline=None)
@given(json_values)
def test_a_value_written_as_json_reads_back_by_its_own_type(value):
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    assert same(cast_by({"type": type_names[type(value)]}, text), value)


schemas = st.recursive(
    st.fixed_dictionaries({}, optional={"type": st.sampled_from(TYPES) | json_values, "enum": json_values})
    | st.builds(lambda name: {"$ref": f"#/properties/{name}"}, st.sampled_from(["x", "y", "z"]))
    | json_values,
    lambda inner: st.fixed_dictionaries(
        {}, optional={key: st.lists(inner, max_size=3) for key in ("anyOf", "oneOf", "allOf", "type")}
    ),
    max_leaves=6,
)
texts = st.text() | json_values.map(json.dumps) | st.sampled_from(["NaN", "[Infinity]", "1e400", "True", "-"])


@settings(deadline=None)
@given(schemas, schemas, texts)
def test_any_schema_and_any_text_give_valid_json(x, y, text):
    parameters = Parameters({"properties": {"x": x, "y": y}, "anyOf": [y]})
    for name in "xy":
        value = json.loads(cast(text, parameters.type_of(name)), parse_constant=pytest.fail)
        assert not isinstance(value, str) or value == text

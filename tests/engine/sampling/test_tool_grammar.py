"""Forced tool calls: exactly well-formed ones, with values that fit their types."""

import json
import re

import pytest
from sampling_forms import EOS, admits, allowed, written

from step3.engine.sampling.errors import ParamsError
from step3.engine.sampling.tool_grammar import tool_call_form

pytest.importorskip("xgrammar")

HOUR = {"type": "integer", "minimum": 0, "maximum": 23}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "days": {"type": "integer", "minimum": 1, "maximum": 14},
                "unit": {"enum": ["C", "F"]},
                "hours": {
                    "type": "array",
                    "items": {"type": "integer", "maximum": 23, "minimum": 0},
                    "maxItems": 2,
                },
                "exact": {"type": "boolean"},
            },
            "required": ["city", "days"],
        },
    },
}
PLAIN = {"type": "function", "function": {"name": "now"}}
SAY = {"name": "say", "parameters": {"properties": {"text": {"type": "string"}}, "required": ["text"]}}

PARAMETER = re.compile(r'<steptml:parameter name="([^"]+)">(.*?)</steptml:parameter>\n', re.DOTALL)


def call(name, **values):
    lines = "".join(
        f'<steptml:parameter name="{key}">{value}</steptml:parameter>\n' for key, value in values.items()
    )
    return (
        f'<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="{name}">\n{lines}'
        "</steptml:invoke><｜tool_call_end｜>\n"
    )


def block(*calls):
    return f"<｜tool_calls_begin｜>\n{''.join(calls)}<｜tool_calls_end｜>"


def start(compiler, tools, choice="required", **options):
    return compiler.compile(tool_call_form(tools, choice, **options)).result(timeout=60).start()


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_written_is_a_call_whose_values_fit(compiler, tokenizer, seed):
    text = written(start(compiler, [WEATHER, PLAIN, SAY], "get_weather"), tokenizer, seed)
    values = dict(PARAMETER.findall(text))
    assert text.lstrip("\n") == block(call("get_weather", **values))
    assert len(values["city"]) <= 12
    assert 1 <= int(values["days"]) <= 14
    assert values.get("unit", "C") in ("C", "F")
    assert all(0 <= hour <= 23 for hour in json.loads(values.get("hours", "[]")))
    assert values.get("exact", "true") in ("true", "false")


@pytest.mark.parametrize(
    ("text", "is_call"),
    [
        (block(call("get_weather", city="Tokyo", days=3)), True),
        ("\n" + block(call("get_weather", city="Tokyo", days=3, unit="F", exact="true")), True),
        (block(call("get_weather", city="007", days=3, hours="[1, 2]")), True),
        (block(call("now"), call("get_weather", city="", days=3)), True),
        (block(call("now")) + "\n", False),
        (block(), False),
        (block(call("get_weather", city="Tokyo")), False),
        (block(call("get_weather", days=3, city="Tokyo")), False),
        (block(call("get_weather", city="Tokyo", days=3, days_="4")), False),
        (block(call("get_weather", city="Tokyo", days="many")), False),
        (block(call("get_weather", city="Tokyo", days=15)), False),
        (block(call("get_weather", city="Tokyo", days=3, unit="K")), False),
        (block(call("get_weather", city="Tokyo", days=3, exact="yes")), False),
        (block(call("now", city="Tokyo")), False),
        (block(call("later")), False),
        ("Certainly! " + block(call("now")), False),
    ],
)
def test_required_admits_calls_of_any_tool_and_nothing_else(compiler, tokenizer, text, is_call):
    assert admits(start(compiler, [WEATHER, PLAIN]), tokenizer, text) is is_call


def test_a_named_tool_is_called_once(compiler, tokenizer):
    assert admits(start(compiler, [PLAIN, SAY], "now"), tokenizer, block(call("now")))
    assert not admits(start(compiler, [PLAIN, SAY], "now"), tokenizer, block(call("now"), call("now")))
    assert not admits(start(compiler, [PLAIN, SAY], "now"), tokenizer, block(call("say", text="x")))


def test_calls_in_parallel_can_be_left_out(compiler, tokenizer):
    two = block(call("now"), call("now"))
    assert admits(start(compiler, [PLAIN]), tokenizer, two)
    assert not admits(start(compiler, [PLAIN], parallel=False), tokenizer, two)


@pytest.mark.parametrize(
    "text",
    ["", "a < b", "</steptml:parameter", "<b>x</b>\n</steptml:", '"quoted" 😀', "<</steptml:param"],
)
def test_text_may_hold_anything_but_its_closing_tag(compiler, tokenizer, text):
    assert admits(start(compiler, [SAY]), tokenizer, block(call("say", text=text)))


def test_text_holds_no_special_tokens(compiler, tokenizer):
    special = set(tokenizer.added_tokens_decoder)
    for tool, opening in ((SAY, "text"), (WEATHER, "city")):
        constraint = start(compiler, [tool])
        head = block(call(tool.get("function", tool)["name"], **{opening: "x"})).split("x</steptml")[0]
        for token in tokenizer.encode(head, add_special_tokens=False):
            assert constraint.advance(token)
        assert len(allowed(constraint)) > 1000
        assert not special & set(allowed(constraint))


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": ["integer", "null"]}, ["7", "null"], ["x", '"7"']),
        ({"anyOf": [{"type": "integer"}, {"enum": ["auto"]}]}, ["7", "auto"], ["x"]),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, ["7", "null", "any"], []),
        ({"const": "on"}, ["on"], ['"on"', "off"]),
        ({"enum": ["a", 1, None, True]}, ["a", "1", "null", "true"], ["2"]),
        ({"type": "string", "pattern": "^[A-Z]{3}$"}, ["ABC"], ["AB", "abc"]),
        ({"type": "string", "minLength": 2}, ["ab", "abc"], ["a"]),
        ({"type": "number"}, ["1.5", "-2", "1e9"], ["one"]),
        (
            {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
            ['{"x": 1}'],
            ["{}", "x"],
        ),
        ({"$ref": "#/$defs/size"}, ["S", "M"], ["L"]),
        ({"type": "array", "items": {"$ref": "#/$defs/size"}}, ['["S", "M"]', "[]"], ['["L"]', "S"]),
        ({}, ["anything", "{"], []),
        (True, ["anything"], []),
    ],
)
def test_values_are_bare_text_or_json_by_their_schema(compiler, tokenizer, schema, good, bad):
    parameters = {"properties": {"v": schema}, "required": ["v"], "$defs": {"size": {"enum": ["S", "M"]}}}
    tools = [{"name": "f", "parameters": parameters}]
    for value in good:
        assert admits(start(compiler, tools), tokenizer, block(call("f", v=value))), value
    for value in bad:
        assert not admits(start(compiler, tools), tokenizer, block(call("f", v=value))), value


def test_a_required_parameter_without_a_description_is_text(compiler, tokenizer):
    tools = [{"name": "f", "parameters": {"required": ["v"]}}]
    assert admits(start(compiler, tools), tokenizer, block(call("f", v="any <text>")))
    assert not admits(start(compiler, tools), tokenizer, block(call("f")))


def test_only_the_end_follows(compiler, tokenizer):
    constraint = start(compiler, [PLAIN])
    assert admits(constraint, tokenizer, block(call("now")))
    assert allowed(constraint) == [EOS]


def test_many_tools_stay_within_the_bounds_of_a_form(compiler, tokenizer):
    tools = [{**WEATHER["function"], "name": f"tool_{i}"} for i in range(128)]
    assert admits(start(compiler, tools), tokenizer, block(call("tool_127", city="x", days=2)))


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        ([], "required", "tools must hold 1 to 128 tools for a forced call, found 0"),
        ([PLAIN] * 129, "required", "found 129"),
        ([PLAIN], "later", "tool_choice names 'later', which is not among the tools"),
        ([{"function": {}}], "required", "a tool must be an object with a function that has a name"),
        (["now"], "required", "a tool must be an object"),
        ([{"name": 'a">'}], "required", "a tool's name must be letters, digits"),
        ([{"name": "a", "parameters": []}], "required", "the parameters of tool a must be a JSON schema"),
        (
            [{"name": "a", "parameters": {"properties": {'x"': {}}}}],
            "required",
            "tool a: a parameter's name cannot hold \" < >",
        ),
        (
            [{"name": "a", "parameters": {"properties": {"x": {"type": "integer", "multipleOf": 2}}}}],
            "required",
            "tool a cannot be forced: the schema.properties.x uses multipleOf",
        ),
        (
            [{"name": "a", "parameters": {"properties": {"x": {"$ref": "#/$defs/y"}}}}],
            "required",
            "refer to '#/$defs/y', which they do not define",
        ),
        (
            [{"name": "a", "parameters": {"properties": {"x": {"$ref": "#/properties/x"}}}}],
            "required",
            "refer to each other in a circle",
        ),
        ([{"name": "a", "parameters": {"properties": {"x": {"enum": []}}}}], "required", "without any entry"),
        (
            [{"name": "a", "parameters": {"required": "x"}}],
            "required",
            "required in a tool's parameters must be",
        ),
        ([{"name": "a", "parameters": {"properties": {"x": {"enum": 5}}}}], "required", "enum in a tool's"),
        (
            [{"name": "a", "parameters": {"properties": {"x": {"anyOf": {}}}}}],
            "required",
            "anyOf in a tool's",
        ),
        (
            [{"name": "a", "parameters": {"properties": {"x": {"maxLength": "9"}}}}],
            "required",
            "maxLength must be a whole number, found '9'",
        ),
    ],
)
def test_tools_that_cannot_be_forced_are_named(tools, choice, message):
    with pytest.raises(ParamsError, match=re.escape(message)):
        tool_call_form(tools, choice)

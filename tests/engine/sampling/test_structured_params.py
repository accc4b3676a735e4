"""Forms of an output: one of several kinds, bounded before anything is compiled."""

import json

import pytest

from step3.engine.sampling.errors import ParamsError
from step3.engine.sampling.structured_params import StructuredOutputsParams


def test_exactly_one_kind_is_needed():
    with pytest.raises(ParamsError, match=r"exactly one of .* found none"):
        StructuredOutputsParams()
    with pytest.raises(ParamsError, match="found regex and choice"):
        StructuredOutputsParams(regex="a", choice=["b"])
    assert StructuredOutputsParams(regex="a").kind == "regex"


def test_equal_schemas_are_equal_keys_whether_object_or_text():
    schema = {"type": "object", "properties": {"größe": {"type": "integer"}}}
    one = StructuredOutputsParams(json=schema)
    assert one == StructuredOutputsParams(json=json.dumps(schema, ensure_ascii=False))
    assert hash(one) == hash(StructuredOutputsParams(json=dict(schema)))


def nested(depth):
    return json.loads('{"items":' * depth + "{}" + "}" * depth)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"json": "{"}, "json is not valid JSON"),
        ({"json": "[]"}, "json must be a JSON object"),
        ({"json": 5}, "json must be a JSON object or its text, found 5"),
        ({"json": ""}, "json is empty"),
        ({"json": nested(64)}, "json is nested too deeply: at most 64 levels"),
        (
            {"json": '{"a":' * 50_000 + "1" + "}" * 50_000},
            "json has 300001 characters|json is nested too deeply",
        ),
        ({"json": {"enum": ["x" * 300_000]}}, "json has 300012 characters|at most 262144"),
        ({"json": {"a": {1, 2}}}, "json cannot be written as JSON"),
        ({"json": {"a": float("nan")}}, "json cannot be written as JSON"),
        ({"regex": ""}, "regex is empty"),
        ({"regex": "a" * 9000}, "regex has 9000 characters, at most 8192"),
        ({"regex": "a\0"}, "regex contains a NUL"),
        ({"regex": 3}, "regex must be a string, found 3"),
        ({"choice": []}, "choice is empty"),
        ({"choice": "ab"}, "choice must be a list of strings, found the string 'ab'"),
        ({"choice": ["a", ""]}, "choice holds an empty string"),
        ({"choice": [str(i) for i in range(5000)]}, "choice holds 5000 strings, at most 4096"),
        ({"choice": ["a", "\ud800"]}, "choice is not valid Unicode: surrogates not allowed"),
        ({"grammar": "r" * 300_000}, "grammar has 300000 characters"),
        ({"json_object": False}, "json_object must be True"),
        ({"regex": "a", "whitespace_pattern": " "}, "whitespace_pattern ' ' is not supported"),
        ({"regex": "a", "disable_any_whitespace": 1}, "disable_any_whitespace must be True or False"),
        ({"structural_tag": "x"}, "structural_tag is not valid JSON"),
    ],
)
def test_malformed_and_oversized_forms_are_refused(options, message):
    with pytest.raises(ParamsError, match=message):
        StructuredOutputsParams(**options)


def test_an_object_that_is_huge_as_text_is_cut_off_early():
    shared = ["x" * 1000]
    for _ in range(40):
        shared = [shared, shared]
    with pytest.raises(ParamsError, match="at most 262144"):
        StructuredOutputsParams(json={"enum": shared})


def test_63_levels_are_allowed():
    assert StructuredOutputsParams(json=nested(63)).kind == "json"


def test_an_unknown_option_is_named():
    with pytest.raises(ParamsError, match="no option 'jsonschema'"):
        StructuredOutputsParams.from_options({"jsonschema": {}})

"""Schemas that a grammar cannot hold an output to are named with the place."""

import pytest

from step3.engine.sampling.schema_support import unsupported_part


@pytest.mark.parametrize(
    ("schema", "found"),
    [
        ({"type": "integer", "multipleOf": 3}, "the schema uses multipleOf"),
        ({"properties": {"a": {"not": {}}}}, "the schema.properties.a uses not"),
        ({"items": {"contains": {"type": "string"}}}, "the schema.items uses contains"),
        ({"$defs": {"x": {"if": {}}}}, "the schema.$defs.x uses if"),
        ({"anyOf": [{}, {"dependentRequired": {"a": ["b"]}}]}, "the schema.anyOf[1] uses dependentRequired"),
        ({"allOf": [{"type": "string"}, {"enum": ["a"]}]}, "the schema uses allOf with several schemas"),
        ({"$ref": "https://example.com/schema"}, "the schema uses $ref to https://example.com/schema"),
        ({"pattern": "a", "maxLength": 3}, "the schema uses pattern together with minLength or maxLength"),
        ({"anyOf": [{}], "maxLength": 3}, "the schema uses maxLength beside anyOf"),
        ({"$ref": "#/$defs/a", "properties": {}}, "the schema uses properties beside $ref"),
        ({"properties": {}, "patternProperties": {"a": {}}}, "the schema uses patternProperties together"),
        ({"properties": {}, "propertyNames": {}}, "the schema uses propertyNames together"),
    ],
)
def test_what_would_be_passed_over_in_silence_is_named(schema, found):
    assert (unsupported_part(schema) or "").startswith(found)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "array", "uniqueItems": False, "items": {"type": "string", "maxLength": 3}},
        {"type": "object", "properties": {"not": {"type": "string"}, "if": {}}, "required": ["not"]},
        {"enum": [{"multipleOf": 3}], "description": "x", "default": 1},
        {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None, "title": "T"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "string", "pattern": "^a$"}}},
        {"allOf": [{"type": "string"}]},
        {"type": "object", "additionalProperties": {"type": "integer"}, "patternProperties": {"^a": {}}},
    ],
)
def test_what_a_grammar_can_express_is_not(schema):
    assert unsupported_part(schema) is None


@pytest.mark.parametrize(
    "schema",
    [5, [1], {"allOf": 5, "$defs": [1]}, {"patternProperties": 5, "items": 7}, {"$ref": 3, "anyOf": "x"}],
)
def test_a_malformed_schema_is_left_to_the_compiler(schema):
    assert unsupported_part({"additionalProperties": schema}) is None

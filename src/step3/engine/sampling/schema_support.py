"""JSON schemas that a grammar cannot hold an output to: named, instead of passed over in silence."""

from collections.abc import Iterator
from typing import Any

# What a context-free grammar cannot express, or xgrammar does not: it would accept what the schema forbids.
_UNSUPPORTED = (
    "multipleOf", "uniqueItems", "contains", "minContains", "maxContains", "not", "if", "then", "else",
    "dependentRequired", "dependentSchemas", "dependencies", "$dynamicRef", "$recursiveRef",
)  # fmt: skip
_ALTERNATIVES = ("$ref", "anyOf", "oneOf", "allOf", "enum", "const")
_ASSERTIONS = (
    "properties", "required", "additionalProperties", "patternProperties", "propertyNames", "items",
    "prefixItems", "minItems", "maxItems", "minLength", "maxLength", "pattern", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "minProperties", "maxProperties",
)  # fmt: skip
_SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_SCHEMAS = ("items", "additionalProperties", "propertyNames", "unevaluatedProperties", "unevaluatedItems")


def unsupported_part(schema: Any) -> str | None:
    """Where a schema asks for what a grammar cannot give, in words; None if nowhere.

    Args:
        schema: parsed JSON.
    """
    for place, part in _subschemas("the schema", schema):
        found = _unsupported_keyword(part)
        if found is not None:
            return f"{place} uses {found}"
    return None


def _subschemas(place: str, schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    waiting = [(place, schema)]
    while waiting:
        place, schema = waiting.pop()
        if not isinstance(schema, dict):
            continue
        yield place, schema
        for keyword in _SCHEMAS_BY_NAME:
            named = schema.get(keyword)
            if isinstance(named, dict):
                waiting += [(f"{place}.{keyword}.{name}"[:200], inner) for name, inner in named.items()]
        for keyword in _SCHEMA_LISTS:
            listed = schema.get(keyword)
            if isinstance(listed, list):
                waiting += [(f"{place}.{keyword}[{i}]"[:200], inner) for i, inner in enumerate(listed)]
        waiting += [
            (f"{place}.{keyword}"[:200], schema[keyword]) for keyword in _SCHEMAS if keyword in schema
        ]


def _unsupported_keyword(schema: dict[str, Any]) -> str | None:
    for keyword in _UNSUPPORTED:
        if schema.get(keyword) not in (None, False):
            return keyword
    if isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1:
        return "allOf with several schemas"
    reference = schema.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        return f"$ref to {reference[:80]}, which is not a part of it"
    if "pattern" in schema and ("minLength" in schema or "maxLength" in schema):
        return "pattern together with minLength or maxLength"
    if "propertyNames" in schema and ("properties" in schema or "patternProperties" in schema):
        return "propertyNames together with properties"
    patterns = schema.get("patternProperties")
    if isinstance(patterns, dict) and ("properties" in schema or len(patterns) > 1):
        return "patternProperties together with other properties"
    for alternative in _ALTERNATIVES:
        beside = [keyword for keyword in _ASSERTIONS if keyword in schema]
        if alternative in schema and beside:
            return f"{beside[0]} beside {alternative}"
    return None

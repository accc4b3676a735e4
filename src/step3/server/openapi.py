"""The description of the server at `/openapi.json`."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

_DESCRIPTION = (
    "Step3 behind the interfaces of OpenAI, Anthropic and vLLM. Nothing of a request is kept once it is "
    "answered: conversations come whole with every request."
)
_ERROR = {
    "OpenAIError": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    },
    "AnthropicError": {
        "type": "object",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}
_REFUSALS = {
    "400": "The request cannot be served as it is.",
    "401": "A valid API key is needed.",
    "404": "There is no such model.",
    "408": "The body did not arrive, or the answer was not made, within the server's limits.",
    "413": "The body is too large.",
    "429": "Too many requests wait; Retry-After says when to come back.",
    "503": "The engine is being started.",
}


def describe(app: FastAPI) -> None:
    """Has the application describe its errors as they are: FastAPI would promise its own."""
    app.description = _DESCRIPTION
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _mend(make())
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _mend(schema: dict[str, Any]) -> None:
    schemas = schema["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas.update(_ERROR)
    for path, operations in schema["paths"].items():
        shape = "AnthropicError" if path.startswith("/v1/messages") else "OpenAIError"
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}
        for operation in operations.values():
            responses = operation["responses"]
            responses.pop("422", None)
            for status, what in _REFUSALS.items():
                responses[status] = {"description": what, "content": content}

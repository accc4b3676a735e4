"""Errors as clients expect them: OpenAI's `{"error": {"message", "type", "param", "code"}}`, and Anthropic's
`{"type": "error", "error": {"type", "message"}}` for what is asked in its protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from step3.server.engine_client import EngineFailure

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "internal_error",
    503: "service_unavailable_error",
}
_MESSAGES_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
MESSAGES_PATH = "/v1/messages"
"""Where Anthropic's protocol is spoken."""

_STATUS = {"invalid": 400, "late": 408, "overloaded": 429, "unavailable": 503, "internal": 500}
RETRY_SECONDS = 1


class RequestFault(HTTPException):
    """A request that is not served.

    Attributes:
        param: the field that is at fault.
        code: OpenAI's short name of the fault, where there is one.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        headers = {"Retry-After": str(RETRY_SECONDS)} if status in (429, 503) else None
        super().__init__(status, message, headers)
        self.param, self.code = param, code


def error_kind(status: int) -> str:
    """What OpenAI calls an error with this status."""
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "internal_error")


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The JSON object of an error."""
    return {"error": {"message": message, "type": error_kind(status), "param": param, "code": code}}


def messages_error(status: int, message: str) -> dict[str, Any]:
    """The JSON object of an error in Anthropic's protocol."""
    kind = _MESSAGES_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": None}


def error_response(fault: HTTPException, path: str) -> JSONResponse:
    """The answer that tells of a fault, in the protocol that is spoken at `path`."""
    param, code = getattr(fault, "param", None), getattr(fault, "code", None)
    if path.startswith(MESSAGES_PATH):
        body = messages_error(fault.status_code, str(fault.detail))
    else:
        body = error_body(fault.status_code, str(fault.detail), param, code)
    return JSONResponse(body, fault.status_code, headers=dict(fault.headers or {}))


def fault_of(failure: EngineFailure) -> RequestFault:
    """What a client is told when the engine does not answer."""
    return RequestFault(_STATUS[failure.kind], str(failure))


def fault_of_validation(error: RequestValidationError) -> RequestFault:
    """The first thing that is wrong with a request's fields."""
    # Where a value may be of several kinds, the one that it fits best says most.
    first = max(error.errors(), key=lambda one: len(one["loc"]))
    param = _path(_place(first["loc"][1:], error.body, is_missing=first["type"] == "missing"))
    if first["type"] == "extra_forbidden":
        return RequestFault(400, f"Unrecognized request argument supplied: {param}", param)
    if first["type"] == "missing":
        return RequestFault(400, f"you must provide {param or 'a JSON body'}", param)
    if not param:
        message = "the body must be a JSON object, sent with Content-Type: application/json"
        return RequestFault(400, message if first["type"] != "value_error" else _said(first))
    return RequestFault(400, f"{param}: {_said(first)}", param)


def _said(error: Mapping[str, Any]) -> str:
    return str(error["msg"]).removeprefix("Value error, ")


def _place(parts: Sequence[str | int], body: Any, is_missing: bool) -> list[str | int]:
    """The fields and places among the parts of a path: pydantic names the kinds of values in it too."""
    place: list[str | int] = []
    for part in parts:
        is_place = isinstance(body, list) and isinstance(part, int) and part < len(body)
        if is_place or (isinstance(body, Mapping) and part in body):
            place.append(part)
            body = body[part]
    return [*place, parts[-1]] if is_missing and parts else place


def _path(parts: Sequence[str | int]) -> str | None:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)[:200]
    return path.removeprefix(".") or None

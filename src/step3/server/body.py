"""Reads a request's JSON within bounds: of size, time, depth and numbers."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from step3.server.config import ServerConfig
from step3.server.errors import RequestFault


class BoundedRequest(Request):
    """A request whose body is read and parsed within a server's limits."""

    async def body(self) -> bytes:
        """The body.

        Raises:
            RequestFault: it is too large, or does not come in time.
        """
        if not hasattr(self, "_body"):
            config: ServerConfig = self.app.state.config
            try:
                self._body = await asyncio.wait_for(
                    self._read(config.max_body_bytes), timeout=config.body_seconds
                )
            except asyncio.TimeoutError:
                message = f"the body did not arrive within {config.body_seconds:g} s"
                raise RequestFault(408, message) from None
        return self._body

    async def json(self) -> Any:
        """The body's JSON.

        Raises:
            RequestFault: see `parse_json`.
        """
        return parse_json(await self.body(), self.app.state.config.max_json_depth)

    async def _read(self, limit: int) -> bytes:
        too_large = RequestFault(413, f"the body is over {limit:,} bytes: send less, or smaller pictures")
        declared = self.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > limit:
            raise too_large
        body = bytearray()
        async for piece in self.stream():
            body += piece
            if len(body) > limit:
                raise too_large
        return bytes(body)


class BoundedRoute(APIRoute):
    """A route whose handler sees `BoundedRequest`s."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            return await handle(BoundedRequest(request.scope, request.receive))

        return handle_bounded


def parse_json(data: bytes, max_depth: int) -> Any:
    """The JSON in `data`.

    Raises:
        RequestFault: not UTF-8, not JSON, nested over `max_depth`, a number that is none or not finite, or
            text with half a surrogate pair.
    """
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except RecursionError:
        raise _too_deep(max_depth) from None
    except ValueError as error:
        where = f" ({error.msg} at character {error.pos})" if isinstance(error, json.JSONDecodeError) else ""
        raise RequestFault(400, f"the body is not valid JSON{where}") from None
    _check(value, max_depth)
    return value


def _check(value: Any, max_depth: int) -> None:
    level, depth = [value], 0
    while level:
        if depth >= max_depth and any(isinstance(one, dict | list) for one in level):
            raise _too_deep(max_depth)
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below += one
                below += one.values()
            elif isinstance(one, list):
                below += one
            elif isinstance(one, str):
                _check_text(one)
            elif isinstance(one, float) and not math.isfinite(one):
                raise RequestFault(400, "the body holds a number that is too large")
            elif isinstance(one, int) and not -(2**63) <= one < 2**64:
                raise RequestFault(400, "the body holds a whole number of more than 64 bits")
        level, depth = below, depth + 1


def _check_text(text: str) -> None:
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        raise RequestFault(
            400, "a text in the body holds half a surrogate pair: send whole characters"
        ) from None


def _refuse_constant(name: str) -> Any:
    raise RequestFault(400, f"the body holds {name}, which JSON does not know")


def _too_deep(max_depth: int) -> RequestFault:
    return RequestFault(400, f"the body is nested over {max_depth} levels deep")

"""What every request passes first: the API key, the count of those within, and the counters."""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from step3.server.errors import RequestFault, error_response
from step3.server.page.assets import ASSETS

OPEN_PATHS = frozenset({"/health", "/version", "/docs", *ASSETS})
"""Where no key is asked for: what load balancers look at, and pages that hold nothing by themselves."""


class Gate:
    """Counts the answers that are being made, and lets only so many in."""

    def __init__(self, most: int) -> None:
        self.most, self.within = most, 0

    def enter(self, count: int) -> None:
        """Makes room for answers, to be given back by `leave`.

        Raises:
            RequestFault: 429, there is none; 400, there never would be.
        """
        if count > self.most:
            raise RequestFault(
                400, f"{count} answers at once are asked for, this server makes {self.most}", "n"
            )
        if self.within + count > self.most:
            raise RequestFault(
                429, f"{self.within} answers are being made or wait, and no more may wait: try again later"
            )
        self.within += count

    def leave(self, count: int) -> None:
        self.within -= count


class FrontDoor:
    """ASGI middleware: refuses who has no key or finds no room, before a body is read."""

    def __init__(
        self,
        app: ASGIApp,
        api_keys: tuple[str, ...],
        paths: frozenset[str],
        most: int,
        responses: Counter[tuple[str, int]],
    ) -> None:
        """
        Args:
            paths: that are counted by their own names.
            most: requests with a body at once.
            responses: where they are counted, by path and status.
        """
        self._app, self._paths, self._responses = app, paths, responses
        self._digests = [_digest(key.encode()) for key in api_keys]
        self._requests = Gate(most)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        label = path if path in self._paths else "other"

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._responses[label, message["status"]] += 1
            await send(message)

        count = 1 if scope["method"] == "POST" else 0
        try:
            if path not in OPEN_PATHS and not self._has_key(scope):
                raise RequestFault(
                    401, "a valid API key is needed: send Authorization: Bearer KEY, or x-api-key"
                )
            self._requests.enter(count)
        except RequestFault as fault:
            await error_response(fault, path)(scope, receive, send_counted)
            return
        try:
            await self._app(scope, receive, send_counted)
        finally:
            self._requests.leave(count)

    def _has_key(self, scope: Scope) -> bool:
        if not self._digests:
            return True
        headers = dict(scope["headers"])
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        # Anthropic's clients send the key alone.
        if scheme.lower() != b"bearer":
            key = headers.get(b"x-api-key", b"")
        digest = _digest(key.strip())
        # Digests have one length, and all are compared: the time tells nothing about a key.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

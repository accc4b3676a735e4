"""An engine that answers from a script, and a client of the application in front of it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from step3.server.app import make_app
from step3.server.config import ServerConfig
from step3.server.engine_client import EngineFailure


class ScriptedCall:
    """Gives the items of a script; an exception in it is raised."""

    def __init__(self, script: list[Any], left: list[str]) -> None:
        self._items, self._left = iter(script), left

    async def __aenter__(self) -> "ScriptedCall":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._left.append("left")

    def __aiter__(self) -> "ScriptedCall":
        return self

    async def __anext__(self) -> Any:
        item = next(self._items, None)
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, asyncio.Event):
            await item.wait()
            return await self.__anext__()
        if isinstance(item, Exception):
            raise item
        return item


class StandIn:
    """What the application needs of a supervisor.

    Attributes:
        scripts: items that each method's calls give.
        asked: the calls that were made.
        left: grows by one for each call that was left.
    """

    def __init__(self, **scripts: list[Any]) -> None:
        self.scripts, self.asked, self.left = scripts, list[tuple[str, Any]](), list[str]()
        self.info = {"max_num_seqs": 2, "max_model_len": 100, "max_pictures": 4}
        self.is_ready, self.restarts = True, 0

    def call(self, method: str, arguments: Any, seconds: float | None = None) -> ScriptedCall:
        if not self.is_ready:
            raise EngineFailure("unavailable", "the engine is being started")
        self.asked.append((method, arguments))
        return ScriptedCall(self.scripts[method], self.left)

    async def ask(self, method: str, arguments: Any) -> Any:
        async with self.call(method, arguments) as call:
            return await call.__anext__()


@asynccontextmanager
async def client_of(supervisor: StandIn, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = make_app(ServerConfig(**options), supervisor)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def post(
    supervisor: StandIn, path: str, body: Any, headers: Mapping[str, str] = {}, **options: Any
) -> httpx.Response:
    """One request's response."""

    async def send() -> httpx.Response:
        async with client_of(supervisor, **options) as client:
            sent = {"content": body} if isinstance(body, bytes) else {"json": body}
            return await client.post(path, headers={"content-type": "application/json", **headers}, **sent)

    return asyncio.run(send())


def get(supervisor: StandIn, path: str, headers: Mapping[str, str] = {}, **options: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        async with client_of(supervisor, **options) as client:
            return await client.get(path, headers=headers)

    return asyncio.run(send())


def answers(*pieces: tuple[int, str, str | None], in_reasoning: bool = False) -> list[Any]:
    """What the engine gives for a chat: 7 prompt tokens, a token for each piece (index, text, end)."""
    items: list[Any] = [{"in_reasoning": in_reasoning}]
    return items + [[7, 3, [[index, text, 1, 0, end, None, None]]] for index, text, end in pieces]

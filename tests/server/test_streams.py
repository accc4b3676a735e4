"""Server-sent events, and clients that go away."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from step3.server.streams import EventStream


def test_a_client_that_goes_while_events_are_at_hand_is_noticed_soon() -> None:
    async def run() -> tuple[int, bool]:
        sent, gone, closed = 0, asyncio.Event(), False

        async def events() -> AsyncGenerator[bytes, None]:
            nonlocal closed
            try:
                for _ in range(1000):
                    yield b"data: {}\n\n"
            finally:
                closed = True

        async def send(message: Any) -> None:
            nonlocal sent
            sent += 1
            if sent == 10:
                gone.set()

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        made = events()
        first: asyncio.Future[bytes] = asyncio.ensure_future(anext(made))
        await asyncio.wait([first])
        await EventStream(made, first, 60.0, b"")({"type": "http"}, receive, send)
        return sent, closed

    sent, closed = asyncio.run(run())
    assert closed
    assert 10 <= sent <= 30

"""uvicorn with our limits, on a socket; an application that answers or does not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from step3.server.connections import ConnectionLimits, limited

PATIENCE = 60
"""Seconds after which something that should happen did not."""
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers as long as it is read."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    size, count = (1 << 20, 1000) if scope["path"] == "/endless" else (1, 1)
    for _ in range(count):
        await send({"type": "http.response.body", "body": b"x" * size, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


@asynccontextmanager
async def connected(**limits: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    config = uvicorn.Config(
        application, http=limited(ConnectionLimits(**limits)), lifespan="off", log_level="critical", port=0
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        server.force_exit = True
        await server.shutdown()


async def ends(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server hangs up."""
    data = b""
    try:
        while piece := await asyncio.wait_for(reader.read(1 << 20), PATIENCE):
            data += piece
    except ConnectionError:
        pass
    return data


@pytest.mark.parametrize("sent", [b"", b"GET", b"GET / HTTP/1.1\r\nHost: x\r\n", REQUEST + b"GET / HT"])
def test_a_request_that_does_not_come_is_not_waited_for(sent: bytes) -> None:
    async def run() -> bytes:
        async with connected(head_seconds=0.2) as (reader, writer):
            writer.write(sent)
            return await ends(reader)

    assert asyncio.run(run()).count(b"200 OK") == sent.count(REQUEST)


def test_headers_without_end_are_not_read_on() -> None:
    async def run() -> bytes:
        async with connected(head_bytes=2000, head_seconds=10 * PATIENCE) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 1000)
            return await ends(reader)

    assert asyncio.run(run()) == b""


def test_a_client_that_never_reads_is_hung_up_on() -> None:
    async def run() -> int:
        async with connected(write_seconds=0.2) as (reader, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.sleep(1)
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            return len(await ends(reader))

    assert 0 < asyncio.run(run()) < 1000 << 20


def test_a_client_that_reads_gets_all_on_one_connection() -> None:
    async def run() -> bytes:
        async with connected(head_seconds=PATIENCE) as (reader, writer):
            writer.write(REQUEST * 3)
            data = b""
            while data.count(b"0\r\n\r\n") < 3:
                data += await asyncio.wait_for(reader.read(1 << 16), PATIENCE)
            return data

    assert asyncio.run(run()).count(b"200 OK") == 3


def test_what_is_left_of_a_refused_request_is_not_read_for_ever() -> None:
    async def run() -> bytes:
        async with connected() as (reader, writer):
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
            return await ends(reader)

    assert asyncio.run(run()).count(b"200 OK") == 1

"""One streamed request over a socket, with the time of every event.

HTTP by hand, because the client often shares the machine with the server that it measures: for each event it
reads, searches a few bytes and looks at the clock, and parses no JSON but that of the first and the last.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
import urllib.parse
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from step3.bench.errors import BenchError

_MOST_BYTES = 1 << 24
_NEVER_SENT = "the server closed the connection before it answered"


@dataclass(frozen=True)
class Endpoint:
    """Where requests go."""

    host: str
    port: int
    path: str
    is_tls: bool
    api_key: str | None = None

    @classmethod
    def of(cls, url: str, path: str, api_key: str | None = None) -> Endpoint:
        """The path `path` (like `/v1/models`) of the server at `url`, which may end in `/v1`.

        Raises:
            BenchError: `url` is not one of http or https.
        """
        parts = urllib.parse.urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise BenchError(f"--url must look like http://127.0.0.1:8000, found {url!r}")
        is_tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if is_tls else 80), prefix + path, is_tls, api_key)

    def request(self, body: Mapping[str, Any] | None) -> bytes:
        """The bytes of a request: GET without a body, else POST of JSON."""
        data = b"" if body is None else json.dumps(body).encode()
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [
            f"{'GET' if body is None else 'POST'} {self.path} HTTP/1.1",
            f"Host: {host}:{self.port}",
            "Accept: text/event-stream, application/json",
            "Connection: close",
        ]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        if self.api_key:
            lines.append(f"Authorization: Bearer {self.api_key}")
        return "\r\n".join([*lines, "", ""]).encode() + data


@dataclass
class Sample:
    """What became of one request. Times in seconds of `time.perf_counter`.

    Attributes:
        started: when it was sent; its connection is opened in that time, as a new client's would be.
        first, last: the first and the last event that showed something; None if none did.
        ended: when the answer was whole, or failed.
        gaps: between events that showed something.
        error: why it failed; None for a whole answer.
    """

    started: float
    first: float | None = None
    last: float | None = None
    ended: float = 0.0
    gaps: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    output_tokens: int = 0
    error: str | None = None

    @property
    def ttft(self) -> float | None:
        """Seconds to the first token."""
        return None if self.first is None else self.first - self.started

    @property
    def tpot(self) -> float | None:
        """Mean seconds from token to token after the first."""
        if self.first is None or self.last is None or self.output_tokens < 2:
            return None
        return (self.last - self.first) / (self.output_tokens - 1)

    @property
    def seconds(self) -> float:
        """From sending to the whole answer."""
        return self.ended - self.started


async def stream(endpoint: Endpoint, body: Mapping[str, Any], timeout: float) -> Sample:
    """Sends a request for a stream and times what comes; failures are in the sample."""
    sample = Sample(time.perf_counter())
    try:
        await asyncio.wait_for(_stream(endpoint, body, sample), timeout)
    except asyncio.TimeoutError:
        sample.error = f"no whole answer within {timeout:g} s"
    except asyncio.IncompleteReadError:
        sample.error = _NEVER_SENT if sample.first is None else "the connection ended before the answer did"
    except (OSError, ValueError, asyncio.LimitOverrunError) as error:
        sample.error = f"{type(error).__name__}: {error}"[:300]
    sample.ended = time.perf_counter()
    return sample


async def get_json(endpoint: Endpoint, timeout: float) -> Any:
    """A JSON answer.

    Raises:
        BenchError: there is none.
    """
    try:
        return await asyncio.wait_for(_get_json(endpoint), timeout)
    except (OSError, ValueError, asyncio.TimeoutError, asyncio.IncompleteReadError) as error:
        raise BenchError(f"{endpoint.host}:{endpoint.port} cannot be asked: {error}") from None


async def _get_json(endpoint: Endpoint) -> Any:
    reader, writer = await _connect(endpoint)
    try:
        writer.write(endpoint.request(None))
        status, is_chunked = await _head(reader)
        content = b"".join([part async for part in _parts(reader, is_chunked)])
    finally:
        writer.close()
    if status != 200:
        raise BenchError(f"{endpoint.path} answered {status}: {_told(content)}")
    return json.loads(content)


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


async def _connect(endpoint: Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    tls = _tls() if endpoint.is_tls else None
    return await asyncio.open_connection(endpoint.host, endpoint.port, ssl=tls, limit=1 << 20)


async def _stream(endpoint: Endpoint, body: Mapping[str, Any], sample: Sample) -> None:
    reader, writer = await _connect(endpoint)
    try:
        writer.write(endpoint.request(body))
        status, is_chunked = await _head(reader)
        if status != 200:
            content = b"".join([part async for part in _parts(reader, is_chunked)])
            sample.error = f"{status}: {_told(content)}"
            return
        pending, is_whole = b"", False
        async for part in _parts(reader, is_chunked):
            now = time.perf_counter()
            pending += part
            *events, pending = pending.replace(b"\r\n", b"\n").split(b"\n\n")
            if len(pending) > _MOST_BYTES:
                raise ValueError("an event is too long")
            for event in events:
                is_whole = _take(event, now, sample) or is_whole
            if sample.error is not None:
                return
        if not is_whole:
            sample.error = "the connection ended before the answer did"
    finally:
        writer.close()


def _take(event: bytes, now: float, sample: Sample) -> bool:
    """Notes an event; whether it was the last one."""
    if not event.startswith(b"data:"):
        return False
    data = event[5:].strip()
    if data == b"[DONE]":
        return True
    if b'"usage":{' in data or b'"usage": {' in data:
        usage = json.loads(data)["usage"]
        sample.prompt_tokens = usage.get("prompt_tokens")
        sample.output_tokens = usage.get("completion_tokens", sample.output_tokens)
        if b'"choices":[]' in data or b'"choices": []' in data:
            return False
    elif data.startswith((b'{"error"', b'{ "error"')):
        sample.error = f"in the stream: {_told(data)}"
        return False
    if sample.last is None:
        # An answer may open with a role and no text yet.
        if not _shows(json.loads(data)):
            return False
        sample.first = now
    else:
        sample.gaps.append(now - sample.last)
    sample.last = now
    if sample.prompt_tokens is None:
        # Servers that tell no usage: an event is mostly a token.
        sample.output_tokens += 1
    return False


def _shows(chunk: Mapping[str, Any]) -> bool:
    choice = (chunk.get("choices") or [{}])[0]
    delta = choice.get("delta") or choice
    names = ("content", "reasoning_content", "reasoning", "tool_calls", "text")
    return any(delta.get(name) for name in names)


async def _head(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """The status of a response, and whether its body comes in chunks."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1") or not words[1].isdecimal():
        raise ValueError(f"no HTTP answer: {first[:60]!r}")
    names = [line.lower().replace(" ", "") for line in lines]
    return int(words[1]), "transfer-encoding:chunked" in names


async def _parts(reader: asyncio.StreamReader, is_chunked: bool) -> AsyncIterator[bytes]:
    """The body as it comes; the connection's end is its own, if it has no chunks."""
    if not is_chunked:
        while part := await reader.read(1 << 16):
            yield part
        return
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        if size > _MOST_BYTES:
            raise ValueError("a chunk is too long")
        yield (await reader.readexactly(size + 2))[:-2]


def _told(content: bytes) -> str:
    """The message of an error, or the beginning of what is there instead."""
    try:
        error = json.loads(content)["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:300]
    except (ValueError, KeyError, TypeError):
        return content[:200].decode("utf-8", "replace").strip() or "without a word"

"""Messages between the coordinator and its instances: msgpack over a stream that both sides have proved.

The listening side sends a nonce, the connecting side its own with a proof, and then the listening side proves
itself too: HMAC-SHA256 of the shared secret over a label and both nonces. Every message after that carries a
MAC over its number and content under a key of this connection and direction, so nothing can be forged,
replayed or left out. A length is checked before anything of it is read.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import ssl
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from step3.errors import Step3Error

log = logging.getLogger("step3.cluster")

GREETING = b"step3 control 1\n"
NONCE_BYTES, PROOF_BYTES, MAC_BYTES = 32, 32, 16
MAX_MESSAGE_BYTES = 1 << 29
"""A longer message is an error of the other side."""

HANDSHAKE_SECONDS = 5.0
LEAST_SECRET_BYTES = 16

_HEAD = struct.Struct(">I")
_NUMBER = struct.Struct(">Q")


class ControlError(Step3Error):
    """A connection that cannot be made, or has ended."""


class Channel:
    """One proved connection. Messages are what msgpack can carry."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key_in: bytes, key_out: bytes
    ) -> None:
        self._reader, self._writer = reader, writer
        self._key_in, self._key_out = key_in, key_out
        self._received = self._sent = 0

    @property
    def own_host(self) -> str:
        """This side's address in the network, "127.0.0.1" where there is none."""
        name = self._writer.get_extra_info("sockname")
        return name[0] if isinstance(name, tuple) else "127.0.0.1"

    async def receive(self) -> Any:
        """The next message.

        Raises:
            ControlError: the connection has ended, or what came is no message of the other side's.
        """
        import msgpack

        try:
            (length,) = _HEAD.unpack(await self._reader.readexactly(_HEAD.size))
            if length > MAX_MESSAGE_BYTES:
                raise ControlError(f"a message of {length:,} bytes is over the {MAX_MESSAGE_BYTES:,} allowed")
            mac = await self._reader.readexactly(MAC_BYTES)
            body = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise ControlError(f"the other side is gone: {error}") from None
        if not hmac.compare_digest(mac, _mac(self._key_in, self._received, body)):
            raise ControlError("a message is not from the other side of this connection")
        self._received += 1
        try:
            return msgpack.unpackb(body, strict_map_key=False)
        except (ValueError, msgpack.UnpackException) as error:
            raise ControlError(f"a message is not msgpack: {error}") from None

    def send(self, message: Any) -> None:
        """Sends a message; to nowhere if the connection has ended.

        Raises:
            ControlError: it is too long.
        """
        import msgpack

        body = msgpack.packb(message)
        if len(body) > MAX_MESSAGE_BYTES:
            raise ControlError(f"a message of {len(body):,} bytes is over the {MAX_MESSAGE_BYTES:,} allowed")
        if not self._writer.is_closing():
            self._writer.write(_HEAD.pack(len(body)) + _mac(self._key_out, self._sent, body) + body)
            self._sent += 1

    async def flush(self) -> None:
        """Waits until what was sent has left, or cannot."""
        with suppress(OSError):
            await self._writer.drain()

    def close(self) -> None:
        self._writer.close()


def check_secret(secret: bytes) -> None:
    """Raises ControlError if it is too short to be one."""
    if len(secret) < LEAST_SECRET_BYTES:
        raise ControlError(
            f"the shared secret has {len(secret)} bytes, at least {LEAST_SECRET_BYTES} are needed: "
            "make one with `openssl rand -hex 32`"
        )


async def connect(address: str, secret: bytes, tls: ssl.SSLContext | None = None) -> Channel:
    """Connects to a coordinator.

    Args:
        address: `HOST:PORT`, or `unix:NAME` for an abstract socket of this host.

    Raises:
        ControlError: nobody is there, or it does not know the secret.
    """
    try:
        async with _deadline():
            if address.startswith("unix:"):
                reader, writer = await asyncio.open_unix_connection("\0" + address.removeprefix("unix:"))
            else:
                host, port = split_address(address)
                reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    except (TimeoutError, asyncio.TimeoutError):
        raise ControlError(f"nobody answers at {address} within {HANDSHAKE_SECONDS:g} s") from None
    except OSError as error:
        raise ControlError(f"nobody answers at {address}: {error.strerror or error}") from None
    try:
        async with _deadline():
            greeting = await reader.readexactly(len(GREETING) + NONCE_BYTES)
            if not greeting.startswith(GREETING):
                raise ControlError(f"at {address} is something else than a coordinator of this version")
            said = greeting + secrets.token_bytes(NONCE_BYTES)
            writer.write(said[len(greeting) :] + _digest(secret, b"connecting", said))
            proof = await reader.readexactly(PROOF_BYTES)
    except (asyncio.IncompleteReadError, OSError, TimeoutError, asyncio.TimeoutError):
        writer.close()
        raise ControlError(
            f"{address} refused: is the secret the same on both sides, and is TLS on at both or at neither?"
        ) from None
    except ControlError:
        writer.close()
        raise
    if not hmac.compare_digest(proof, _digest(secret, b"listening", said)):
        writer.close()
        raise ControlError(f"{address} does not know the secret")
    return Channel(reader, writer, _digest(secret, b"key of listening", said), _digest(secret, b"key", said))


async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: bytes) -> Channel | None:
    """The other end of `connect`; None, with a log line, for who does not know the secret."""
    said = GREETING + secrets.token_bytes(NONCE_BYTES)
    try:
        writer.write(said)
        async with _deadline():
            answer = await reader.readexactly(NONCE_BYTES + PROOF_BYTES)
    except (asyncio.IncompleteReadError, OSError, TimeoutError, asyncio.TimeoutError):
        log.warning("dropped a control connection that did not prove itself")
        writer.close()
        return None
    said += answer[:NONCE_BYTES]
    if not hmac.compare_digest(answer[NONCE_BYTES:], _digest(secret, b"connecting", said)):
        log.warning("dropped a control connection with a wrong secret")
        writer.close()
        return None
    writer.write(_digest(secret, b"listening", said))
    return Channel(reader, writer, _digest(secret, b"key", said), _digest(secret, b"key of listening", said))


async def listen(
    address: str,
    secret: bytes,
    serve: Callable[[Channel], Awaitable[None]],
    tls: ssl.SSLContext | None = None,
) -> tuple[asyncio.AbstractServer, str]:
    """Takes connections, and has `serve` run each that proves itself.

    Returns:
        The server, and the address with the port that was taken.

    Raises:
        ControlError: the address cannot be had.
    """

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = await accept(reader, writer, secret)
        if channel is not None:
            try:
                await serve(channel)
            finally:
                with suppress(OSError):
                    channel.close()

    try:
        if address.startswith("unix:"):
            return await asyncio.start_unix_server(take, "\0" + address.removeprefix("unix:")), address
        host, port = split_address(address)
        server = await asyncio.start_server(take, host, port, ssl=tls)
    except OSError as error:
        raise ControlError(f"cannot listen at {address}: {error.strerror or error}") from None
    return server, f"{host}:{server.sockets[0].getsockname()[1]}"


def split_address(address: str) -> tuple[str, int]:
    """`HOST:PORT` in its parts; an IPv6 host stands in brackets.

    Raises:
        ControlError: it is not of that form.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ControlError(f"{address[:100]!r} is no address: write HOST:PORT, like 10.0.0.1:7000")
    return host, int(port)


class _deadline:
    """`asyncio.timeout` of Python 3.11, as far as it is needed here."""

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._is_over = task, False
        self._handle = asyncio.get_running_loop().call_later(HANDSHAKE_SECONDS, self._expire)

    def _expire(self) -> None:
        self._is_over = True
        self._task.cancel()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._handle.cancel()
        if self._is_over and kind is asyncio.CancelledError:
            raise asyncio.TimeoutError


def _digest(secret: bytes, label: bytes, said: bytes) -> bytes:
    return hmac.digest(secret, b"step3 control " + label + b"\0" + said, "sha256")


def _mac(key: bytes, number: int, body: bytes) -> bytes:
    return hmac.digest(key, _NUMBER.pack(number) + body, "sha256")[:MAC_BYTES]

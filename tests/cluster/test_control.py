"""Control connections: what is proved, carried and refused."""

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from step3.cluster import control
from step3.cluster.control import Channel, ControlError

SECRET = b"s" * 32


def converse(
    client: Callable[[str], Awaitable[Any]], secret: bytes = SECRET, address: str = "127.0.0.1:0"
) -> tuple[Any, list[Any]]:
    """What a client gives, and what the listening side has received and echoed."""
    received: list[Any] = []

    async def echo(channel: Channel) -> None:
        try:
            while True:
                received.append(await channel.receive())
                channel.send(["echo", received[-1]])
        except ControlError as error:
            received.append(error)

    async def run() -> Any:
        server, bound = await control.listen(address, secret, echo)
        try:
            return await client(bound)
        finally:
            server.close()
            await asyncio.sleep(0.05)

    return asyncio.run(run()), received


async def ask(address: str) -> Any:
    channel = await control.connect(address, SECRET)
    channel.send({"a": [1, b"\0x", None], 7: "ü"})
    answer = await channel.receive()
    channel.close()
    return answer


@pytest.mark.parametrize("address", ["127.0.0.1:0", "unix:step3-test-control"])
def test_messages_go_both_ways(address: str) -> None:
    answer, received = converse(ask, address=address)
    assert answer == ["echo", {"a": [1, b"\0x", None], 7: "ü"}]
    assert received[0] == {"a": [1, b"\0x", None], 7: "ü"}


def test_a_wrong_secret_is_refused_on_both_sides(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(ControlError, match="is the secret the same"):
        converse(ask, secret=b"t" * 32)
    assert "wrong secret" in caplog.text


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n" * 10,
        b"\x80\x04\x95" + b"." * 100,
        struct.pack(">I", 2**31) + b"x" * 200,
    ],
)
def test_garbage_is_dropped_with_a_log_line(garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def client(address: str) -> Any:
        host, port = control.split_address(address)
        _, writer = await asyncio.open_connection(host, port)
        writer.write(garbage)
        if not garbage:
            writer.close()
        await asyncio.sleep(0.05)
        # Others are served as before.
        return await ask(address)

    with caplog.at_level(logging.WARNING):
        answer, received = converse(client)
    assert answer[0] == "echo"
    assert len([one for one in received if not isinstance(one, ControlError)]) == 1
    assert "dropped a control connection" in caplog.text


def tamper(change: Callable[[bytes], bytes]) -> list[Any]:
    """Sends two messages through a man in the middle who changes the bytes of the second."""

    async def client(address: str) -> None:
        channel = await control.connect(address, SECRET)
        written: list[bytes] = []
        write = channel._writer.write
        channel._writer.write = written.append  # type: ignore[method-assign]
        channel.send("one")
        channel.send("two")
        write(written[0] + change(written[1]))
        await asyncio.sleep(0.05)
        channel.close()

    return converse(client)[1]


def test_a_changed_message_ends_the_connection() -> None:
    received = tamper(lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    assert received[0] == "one"
    assert "not from the other side" in str(received[1])


def test_a_replayed_message_ends_the_connection() -> None:
    received = tamper(lambda data: data + data)
    assert received[:2] == ["one", "two"]
    assert "not from the other side" in str(received[2])


def test_a_length_over_the_limit_ends_the_connection_before_anything_is_read() -> None:
    received = tamper(lambda data: struct.pack(">I", 2**31) + data[4:])
    assert "over the" in str(received[1])


def test_a_message_that_is_too_long_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_MESSAGE_BYTES", 100)

    async def client(address: str) -> None:
        channel = await control.connect(address, SECRET)
        channel.send("x" * 200)

    with pytest.raises(ControlError, match="over the 100 allowed"):
        converse(client)


def test_addresses_that_cannot_be_are_named() -> None:
    for address in ("", "host", "host:", ":1", "host:99999", "host:x"):
        with pytest.raises(ControlError, match="write HOST:PORT"):
            control.split_address(address)
    assert control.split_address("[::1]:80") == ("::1", 80)


def test_nobody_there_is_said_so() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ControlError, match="nobody answers"):
        asyncio.run(control.connect(address, SECRET))


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ControlError, match="at least 16"):
        control.check_secret(b"short")

"""Whatever is sent to a port: it is dropped with a log line, and those who know the secret are served."""

import contextlib
import gc
import logging
import os
import pickle
import socket
import struct
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from wire_world import SECRET, SHAPES, World, activations, routing

from step3.wire import Answer, AttentionEndpoint, FFNEndpoint, Format, Gone, Role, Timing, frames, handshake
from step3.wire.endpoint import MAX_STRANGERS
from step3.wire.frames import Header, Kind
from step3.wire.handshake import CONNECTING, Hello
from step3.wire.layout import call_layout

CALL = Header(
    Kind.CALL,
    Format.FLOAT32,
    Format.FLOAT32,
    instance=9,
    tokens=2,
    hidden=SHAPES.hidden,
    payload_bytes=call_layout(Format.FLOAT32, 2, SHAPES.hidden, 0).nbytes,
)


class Stranger:
    """A socket at an endpoint's address, and what a peer would do with it."""

    def __init__(self, where: str) -> None:
        if where.startswith("tcp://"):
            host, port = where.removeprefix("tcp://").split(":")
            self.socket = socket.create_connection((host, int(port)))
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(b"\0step3/" + where.removeprefix("shm://").encode())
        self.key = b""

    def send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # it was dropped already
            self.socket.sendall(data)

    def take(self, world: World, nbytes: int) -> bytes:
        """Reads while the endpoints take turns."""
        self.socket.setblocking(False)
        data = b""
        limit = time.monotonic() + 60
        while len(data) < nbytes:
            assert time.monotonic() < limit
            world.turn()
            try:
                piece = self.socket.recv(nbytes - len(data))
            except BlockingIOError:
                continue
            assert piece, "the connection was dropped"
            data += piece
        self.socket.setblocking(True)
        return data

    def is_dropped(self) -> bool:
        """Whether the other side has closed the connection; what it had sent is thrown away."""
        self.socket.setblocking(False)
        try:
            while self.socket.recv(1 << 16):
                pass
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def log_in(self, world: World, secret: bytes = SECRET) -> bytes:
        """Proves itself as attention instance 9; all that was said."""
        said = self.take(world, handshake.CHALLENGE_BYTES)
        hello = handshake.hello(secret, CONNECTING, said, Hello(Role.ATTENTION, 9, 0, SHAPES))
        self.send(hello)
        said += hello
        said += self.take(world, handshake.HELLO_BYTES)
        self.key = handshake.keys(secret, said).connecting
        return said

    def call(self, serial: int = 0, payload: bytes | None = None, **change: int) -> bytes:
        """A call as bytes; right in every respect unless changed."""
        data = bytes(CALL.payload_bytes) if payload is None else payload
        header = CALL._replace(serial=serial, checksum=frames.checksum(memoryview(data)))._replace(**change)
        return frames.pack(header, self.key) + data


@pytest.fixture
def served(world: World) -> tuple[AttentionEndpoint, FFNEndpoint, str]:
    """A pair that is connected, and where its FFN endpoint listens."""
    ffn, where = world.add_ffn()
    attention = world.add_attention(where)
    world.until(lambda: attention.peers and ffn.peers)
    return attention, ffn, where


def assert_served(world: World, attention: AttentionEndpoint, ffn: FFNEndpoint) -> None:
    """A call of the pair is answered; nobody has left it."""
    before = len(world.groups)
    answered = len(world.told(attention, Answer))
    (ticket,) = attention.push(attention.peers, 0, 1, activations(3), *routing(3))
    group = world.group(before + 1)
    ffn.reply(group, group.x(torch.float32))
    answer = world.answers(attention, answered + 1)[-1]
    assert answer.ticket is ticket
    assert torch.equal(answer.partial, activations(3))
    assert not world.told(attention, Gone)


RANDOM = np.random.default_rng(0)
GARBAGE: dict[str, bytes] = {
    "random bytes": RANDOM.bytes(100_000),
    "zeros": bytes(100_000),
    "a pickle": pickle.dumps({"layer": 3, "x": list(range(2000))}),
    "a pickle that would run": b"cos\nsystem\n(S'touch /tmp/step3-was-here'\ntR." * 20,
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X-Long: " + b"a" * 1000 + b"\r\n\r\n",
    "a length of 2 GB": struct.pack("<I", 1 << 31) * 1000,
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + RANDOM.bytes(500),
    "a frame that nobody asked for": frames.pack(CALL, b"") + bytes(CALL.payload_bytes),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_is_dropped_with_a_log_line(
    world: World, served: tuple, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    attention, ffn, where = served
    with caplog.at_level(logging.WARNING, "step3.wire"):
        stranger = Stranger(where)
        stranger.send(GARBAGE[what])
        world.until(stranger.is_dropped)
    assert "dropped the connection" in caplog.text
    assert "wrong secret" in caplog.text
    assert_served(world, attention, ffn)
    assert len(ffn.peers) == 1


@pytest.mark.parametrize("nbytes", [0, 1, 50, handshake.HELLO_BYTES - 1])
def test_a_connection_that_ends_too_soon(world: World, served: tuple, nbytes: int) -> None:
    attention, ffn, where = served
    stranger = Stranger(where)
    stranger.send(bytes(nbytes))
    stranger.socket.close()
    assert_served(world, attention, ffn)


def test_a_wrong_secret_is_dropped(world: World, served: tuple, caplog: pytest.LogCaptureFixture) -> None:
    attention, ffn, where = served
    stranger = Stranger(where)
    said = stranger.take(world, handshake.CHALLENGE_BYTES)
    hello = Hello(Role.ATTENTION, 9, 0, SHAPES)
    stranger.send(handshake.hello(b"not the secret of the tests", CONNECTING, said, hello))
    world.until(stranger.is_dropped)
    assert "wrong secret" in caplog.text
    assert_served(world, attention, ffn)


def test_a_recorded_connection_cannot_be_replayed(world: World, served: tuple) -> None:
    attention, ffn, where = served
    first = Stranger(where)
    said = first.log_in(world)
    recorded = said[handshake.CHALLENGE_BYTES :][: handshake.HELLO_BYTES] + first.call()
    first.socket.close()
    before = len(world.groups)
    again = Stranger(where)
    again.send(recorded)
    world.until(again.is_dropped)
    assert len(world.groups) == before
    assert_served(world, attention, ffn)


@pytest.mark.parametrize("silent", [True, False])
def test_who_does_not_prove_itself_in_time_is_dropped(
    world: World, silent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    timing = Timing(heartbeat=0.05, silence=30.0, handshake=0.2)
    _, where = world.add_ffn(timing=timing)
    stranger = Stranger(where)
    if not silent:
        stranger.send(b"a little")
    world.until(stranger.is_dropped)
    assert "no proof within 0.2 s" in caplog.text


def test_many_strangers_do_not_keep_out_a_friend(world: World, served: tuple) -> None:
    attention, ffn, where = served
    strangers = []
    for _ in range(MAX_STRANGERS + 10):
        strangers.append(Stranger(where))
        world.turn()
    world.until(lambda: sum(one.is_dropped() for one in strangers) == 10)
    assert_served(world, attention, ffn)
    friend = world.add_attention(where, instance=1)
    world.until(lambda: friend.peers)
    for one in strangers:
        one.socket.close()


def test_a_member_that_keeps_the_rules_is_served(world: World, served: tuple) -> None:
    """So that the tests below fail for what they change, and nothing else."""
    _, _, where = served
    member = Stranger(where)
    member.log_in(world)
    if world.transport == "tcp":
        member.send(member.call(payload=activations(2).numpy().tobytes()))
        assert torch.equal(world.group().x(torch.float32), activations(2))
    else:
        member.send(member.call()[: frames.HEADER_BYTES])
        assert world.group().tokens == 2
    member.socket.close()


BROKEN: dict[str, Callable[[Stranger], bytes]] = {
    "claims 2,147,483,648 bytes": lambda member: member.call(payload_bytes=1 << 31),
    "17 tokens": lambda member: member.call(tokens=17),
    "slot 3": lambda member: member.call(slot=3),
    "frame 1 came where frame 0": lambda member: member.call(serial=1),
    "of epoch 5": lambda member: member.call(epoch=5),
    "of instance 8": lambda member: member.call(instance=8),
    "partial frame came": lambda member: member.call(kind=Kind.PARTIAL, payload_bytes=4 * 2 * SHAPES.hidden),
    "tag is wrong": lambda member: frames.pack(CALL, b"another key"),
    "no frame of the wire": lambda member: pickle.dumps(list(range(1000))),
    "frame 0 came where frame 1": lambda member: (
        member.call(kind=Kind.HEARTBEAT, payload_bytes=0)[: frames.HEADER_BYTES] * 2
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_member_that_breaks_the_rules_is_dropped(
    world: World, served: tuple, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    attention, ffn, where = served
    member = Stranger(where)
    member.log_in(world)
    world.until(lambda: len(ffn.peers) == 2)
    member.send(BROKEN[message](member))
    world.until(member.is_dropped)
    assert message in caplog.text
    assert "attention instance 9" in caplog.text
    assert_served(world, attention, ffn)


@pytest.mark.parametrize("checksums", [True, False])
def test_payloads_pass_with_and_without_checksums(world: World, checksums: bool) -> None:
    ffn, where = world.add_ffn(checksums=checksums)
    attention = world.add_attention(where, checksums=checksums)
    world.until(lambda: attention.peers)
    attention.push(attention.peers, 0, 1, activations(3))
    ffn.reply(world.group(), 2 * world.group().x(torch.float32))
    assert torch.equal(world.answers(attention, 1)[0].partial, 2 * activations(3))


def test_a_damaged_payload_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    world = World("tcp")
    try:
        _, where = world.add_ffn()
        member = Stranger(where)
        member.log_in(world)
        data = bytearray(member.call())
        data[-1] ^= 1
        member.send(bytes(data))
        world.until(member.is_dropped)
        assert "payload of a call frame is damaged" in caplog.text
        assert not world.groups
    finally:
        world.close()


@pytest.mark.parametrize("cut", [1, frames.HEADER_BYTES, frames.HEADER_BYTES + 100])
def test_a_torn_frame_holds_up_nobody_and_ends_with_its_connection(
    world: World, served: tuple, cut: int
) -> None:
    attention, ffn, where = served
    member = Stranger(where)
    member.log_in(world)
    member.send(member.call()[:cut] if world.transport == "tcp" else member.call()[: min(cut, 100)])
    assert_served(world, attention, ffn)
    member.socket.close()
    world.until(lambda: world.told(ffn, Gone))
    assert world.told(ffn, Gone)[0].peer.instance == 9
    assert_served(world, attention, ffn)


def test_a_second_call_in_a_slot_is_dropped(
    world: World, served: tuple, caplog: pytest.LogCaptureFixture
) -> None:
    attention, ffn, where = served
    member = Stranger(where)
    member.log_in(world)
    size = None if world.transport == "tcp" else frames.HEADER_BYTES
    member.send(member.call()[:size] + member.call(serial=1)[:size])
    world.until(member.is_dropped)
    assert "whose last call has no answer yet" in caplog.text
    assert_served(world, attention, ffn)


def test_expert_ids_out_of_range_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    world = World("tcp")
    try:
        _, where = world.add_ffn()
        for expert in (-1, SHAPES.experts):
            member = Stranger(where)
            member.log_in(world)
            layout = call_layout(Format.FLOAT32, 2, SHAPES.hidden, SHAPES.top_k)
            data = bytearray(layout.nbytes)
            struct.pack_into("<i", data, layout.ids + 4, expert)
            member.send(member.call(payload=bytes(data), top_k=SHAPES.top_k, payload_bytes=layout.nbytes))
            world.until(member.is_dropped)
        assert caplog.text.count("an expert id of") == 2
        assert not world.groups
    finally:
        world.close()


def test_descriptors_from_strangers_are_not_kept(world: World, served: tuple) -> None:
    if world.transport != "shm":
        pytest.skip("only a Unix socket carries descriptors")
    attention, ffn, where = served
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    stranger = Stranger(where)
    read, write = os.pipe()
    socket.send_fds(stranger.socket, [bytes(handshake.HELLO_BYTES)], [read, write])
    world.until(stranger.is_dropped)
    for fileno in (read, write):
        os.close(fileno)
    stranger.socket.close()
    assert_served(world, attention, ffn)
    assert len(os.listdir("/proc/self/fd")) == before

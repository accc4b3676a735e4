"""Peers that die, freeze or are cut off are told of, and nothing of theirs stays."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from wire_world import SECRET, SHAPES, World, activations, address

import step3
from step3.wire import Answer, AttentionEndpoint, FFNEndpoint, Format, Gone, Shapes, Timing

ECHO = Path(__file__).with_name("echo_ffn.py")


class Echo:
    """An FFN instance in a process of its own."""

    def __init__(self, transport: str, silence: float = 30.0) -> None:
        path = [str(ECHO.parent), str(Path(step3.__file__).parents[1])]
        self.process = subprocess.Popen(
            [sys.executable, str(ECHO), address(transport), str(silence)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address, "the process did not start"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def echo(world: World) -> Iterator[Echo]:
    made = Echo(world.transport)
    yield made
    made.kill()


def segments(pid: int | str = "self") -> int:
    """Shared segments of the wire that a process has mapped."""
    gc.collect()  # what other tests left
    return Path(f"/proc/{pid}/maps").read_text().count("memfd:step3-wire")


def test_a_process_of_its_own_answers(world: World, echo: Echo) -> None:
    attention = world.add_attention(echo.address)
    world.until(lambda: attention.peers)
    attention.push(attention.peers, 0, 1, activations(16))
    assert torch.equal(world.answers(attention, 1)[0].partial, 2 * activations(16))


def test_a_killed_peer_is_gone_with_its_calls_and_its_memory(world: World, echo: Echo) -> None:
    before = segments()
    attention = world.add_attention(echo.address)
    world.until(lambda: attention.peers)
    assert segments() - before == (1 if world.transport == "shm" else 0)
    (ticket,) = attention.push(attention.peers, 0, 1, activations(1))
    world.answers(attention, 1)[0].release()
    os.kill(echo.process.pid, signal.SIGSTOP)
    (ticket,) = attention.push(attention.peers, 0, 1, activations(1))
    echo.process.kill()
    world.until(lambda: world.told(attention, Gone))
    (gone,) = world.told(attention, Gone)
    assert not gone.graceful
    assert "closed" in gone.reason or "reset" in gone.reason
    assert gone.lost == (ticket,)
    world.events[attention].clear()
    assert segments() == before


def test_a_frozen_peer_is_gone_once_its_silence_is_too_long(world: World, echo: Echo) -> None:
    attention = world.add_attention(echo.address, timing=Timing(heartbeat=0.05, silence=0.5))
    world.until(lambda: attention.peers)
    os.kill(echo.process.pid, signal.SIGSTOP)
    world.until(lambda: world.told(attention, Gone))
    assert world.told(attention, Gone)[0].reason == "silent for 0.5 s"


def test_an_endpoint_that_computes_for_long_is_not_taken_for_dead(world: World) -> None:
    timing = Timing(heartbeat=0.02, silence=1.5)
    ffn, where = world.add_ffn(timing=timing)
    attention = world.add_attention(where, timing=timing)
    world.until(lambda: attention.peers and ffn.peers)
    end = time.monotonic() + 2.5
    while time.monotonic() < end:  # the FFN side does not look at its endpoint meanwhile
        world.events[attention] += attention.wait(0.05)
    assert not world.told(attention, Gone)
    world.turn()
    assert not world.told(ffn, Gone)


def test_segments_of_a_killed_pair_are_gone() -> None:
    """Neither process could clean up; nothing with a name was ever made."""
    echo = Echo("shm")
    world = World("shm")
    try:
        attention = world.add_attention(echo.address)
        world.until(lambda: attention.peers)
        assert segments(echo.process.pid) == 1
        assert not [name for name in os.listdir("/dev/shm") if "step3" in name]
    finally:
        echo.kill()
        world.close()
    assert echo.address.removeprefix("shm://") not in Path("/proc/net/unix").read_text()


def test_closing_frees_what_was_held(world: World) -> None:
    before = segments(), len(os.listdir("/proc/self/fd"))
    attention, ffn = world.pair()
    attention.push(attention.peers, 0, 1, activations(1))
    ffn.reply(world.group(), activations(1))
    world.answers(attention, 1)
    world.close()
    world.attention.clear()
    world.ffn.clear()
    world.groups.clear()
    world.events.clear()
    del attention, ffn
    assert (segments(), len(os.listdir("/proc/self/fd"))) == before


def test_what_a_slow_peer_did_not_take_is_sent_once_it_reads_again(world: World, echo: Echo) -> None:
    attention = world.add_attention(echo.address)
    world.until(lambda: attention.peers)
    os.kill(echo.process.pid, signal.SIGSTOP)
    for lane in range(SHAPES.slots):
        attention.push(attention.peers, lane, 1, activations(16, lane))
    os.kill(echo.process.pid, signal.SIGCONT)
    answers = {answer.ticket.lane: answer.partial for answer in world.answers(attention, SHAPES.slots)}
    for lane in range(SHAPES.slots):
        assert torch.equal(answers[lane], 2 * activations(16, lane))


def test_a_call_larger_than_the_sockets_buffers_arrives_whole() -> None:
    shapes = Shapes(hidden=8192, max_tokens=1024, layers=1, slots=1)
    timing = Timing(heartbeat=0.05, silence=30.0)
    x = torch.randn(1024, 8192, generator=torch.Generator().manual_seed(0))
    partial = x * 2
    with (
        FFNEndpoint(0, shapes, SECRET, timing=timing) as ffn,
        AttentionEndpoint(
            0, shapes, SECRET, activations=Format.FLOAT32, partials=Format.FLOAT32, timing=timing
        ) as attention,
    ):
        attention.connect(ffn.listen("tcp://127.0.0.1:0"))
        while not (attention.peers and ffn.peers):
            attention.poll()
            ffn.poll()
        attention.push(attention.peers, 0, 0, x)  # nobody reads while this thread sends
        group = None
        while group is None:
            group = ffn.serve(1.0)
            ffn.events()
        assert torch.equal(group.x(torch.float32), x)
        ffn.reply(group, partial)
        partial.zero_()  # what could not be sent at once was kept
        answer = None
        while answer is None:
            answer = next((event for event in attention.wait(1.0) if isinstance(event, Answer)), None)
        assert torch.equal(answer.partial, x * 2)

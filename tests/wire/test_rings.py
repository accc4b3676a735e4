"""Headers in shared memory: in order, none lost at an end, nothing that a peer writes believed."""

import ctypes
import select
from collections.abc import Iterator

import pytest
import torch
from wire_world import SHAPES, World, activations, routing

from step3.wire import Answer, AttentionEndpoint, Format, Gone, Shapes, frames
from step3.wire.frames import Header, Kind
from step3.wire.layout import call_layout
from step3.wire.native import open_library, why_not
from step3.wire.rings import Rings, num_entries

pytestmark = pytest.mark.skipif(open_library() is None, reason=why_not())

CALL = Header(
    Kind.CALL,
    tokens=2,
    hidden=SHAPES.hidden,
    payload_bytes=call_layout(Format.FLOAT32, 2, SHAPES.hidden, 0).nbytes,
)


@pytest.fixture
def near() -> Iterator[World]:
    """Endpoints that share memory."""
    made = World("shm")
    yield made
    made.close()


def rings(attention: AttentionEndpoint) -> Rings:
    (connection,) = attention._peers.values()
    assert connection.rings is not None
    return connection.rings


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 5, 1000])
def test_a_ring_holds_a_frame_of_each_slot(slots: int) -> None:
    assert num_entries(slots) >= slots
    assert num_entries(slots) & (num_entries(slots) - 1) == 0


def test_all_slots_are_taken_again_and_again_in_order(near: World) -> None:
    attention, ffn = near.pair()
    for turn in range(7):
        for lane in range(SHAPES.slots):
            attention.push(attention.peers, lane, turn % 4, activations(1, lane))
        near.until(lambda: sum(len(group.calls) for group in near.groups) == SHAPES.slots)
        lanes = [call.lane for group in near.groups for call in group.calls]
        assert lanes == list(range(SHAPES.slots))
        for group in near.groups:
            ffn.reply(group, group.x(torch.float32))
        near.groups.clear()
        for answer in near.answers(attention, SHAPES.slots):
            assert torch.equal(answer.partial, activations(1, answer.ticket.lane))
            answer.release()
        near.events[attention].clear()


def test_an_answer_that_was_given_before_a_goodbye_is_not_lost(near: World) -> None:
    attention, ffn = near.pair()
    (ticket,) = attention.push(attention.peers, 0, 1, activations(2))
    ffn.reply(near.group(), activations(2))
    near.ffn.remove(ffn)
    ffn.close()
    near.until(lambda: near.told(attention, Gone))
    kinds = [type(event) for event in near.events[attention]]
    assert kinds.index(Answer) < kinds.index(Gone)
    assert near.told(attention, Gone)[0].lost == ()
    assert near.told(attention, Answer)[0].ticket is ticket


def test_a_selector_of_ones_own_is_told(near: World) -> None:
    attention, ffn = near.pair()
    mine = select.poll()
    mine.register(attention.fileno(), select.POLLIN)
    attention.push(attention.peers, 0, 1, activations(1))
    group = near.group()
    attention.wait(0.0)
    while mine.poll(0):
        attention.wait(0.0)
    ffn.reply(group, activations(1))
    assert mine.poll(60_000)
    assert [type(event) for event in attention.wait(0.0)] == [Answer]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"\x80\x04K\x01." * 18, "no frame of the wire"),
        (frames.pack_fields(CALL._replace(tokens=1 << 30)), "1,073,741,824 tokens do not fit"),
        (frames.pack_fields(CALL._replace(payload_bytes=1 << 31)), "claims 2,147,483,648 bytes"),
        (frames.pack_fields(CALL._replace(slot=9)), "slot 9"),
        (frames.pack_fields(CALL._replace(layer=4)), "layer 4"),
        (frames.pack_fields(CALL._replace(instance=5)), "a call of instance 5"),
        (frames.pack_fields(CALL._replace(kind=Kind.PARTIAL)), "partial frame came to an FFN"),
        (frames.pack_fields(Header(Kind.HEARTBEAT)), "heartbeat frame came in a ring"),
    ],
)
def test_a_peer_that_writes_what_may_not_be_is_dropped(
    near: World, caplog: pytest.LogCaptureFixture, frame: bytes, message: str
) -> None:
    attention, ffn = near.pair()
    rings(attention).send(frame[: frames.FIELDS_BYTES])
    near.until(lambda: near.told(ffn, Gone))
    assert message in caplog.text
    assert message in near.told(ffn, Gone)[0].reason


def test_a_frame_that_takes_another_ones_place_is_noticed(near: World) -> None:
    attention, ffn = near.pair()
    ring = rings(attention)
    ring._writer.sent += num_entries(SHAPES.slots)
    ring.send(frames.pack_fields(CALL))
    near.until(lambda: near.told(ffn, Gone))
    assert "not the one that was due" in near.told(ffn, Gone)[0].reason


def test_an_expert_that_is_not_there_is_noticed(near: World) -> None:
    attention, ffn = near.pair()
    ids, weights = routing(2)
    ids[1, 0] = -1
    attention.push(attention.peers, 0, 1, activations(2), ids, weights)
    near.until(lambda: near.told(ffn, Gone))
    assert "an expert id of 4294967295 came, of 8 experts" in near.told(ffn, Gone)[0].reason


def test_the_header_has_the_size_that_the_library_copies() -> None:
    from step3.wire.native import HEADER_BYTES, Found

    assert frames.FIELDS_BYTES == HEADER_BYTES
    assert ctypes.sizeof(Found) >= HEADER_BYTES


def test_a_side_without_the_library_is_met_over_the_socket(
    near: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("step3.wire.endpoint.open_library", lambda: None)
        ffn, where = near.add_ffn()
    attention = near.add_attention(where)
    near.until(lambda: attention.peers and ffn.peers)
    (connection,) = attention._peers.values()
    assert connection.rings is None
    attention.push(attention.peers, 0, 1, activations(2))
    ffn.reply(near.group(), activations(2))
    assert torch.equal(near.answers(attention, 1)[0].partial, activations(2))


def test_many_connections_are_all_served(near: World) -> None:
    ffn, where = near.add_ffn(shapes=Shapes(192, 16, 4, 8, 2, slots=3))
    several = [near.add_attention(where, instance=number) for number in range(5)]
    near.until(lambda: len(ffn.peers) == 5 and all(one.peers for one in several))
    for number, attention in enumerate(several):
        attention.push(attention.peers, 0, 1, activations(1, number))
    near.until(lambda: sum(len(group.calls) for group in near.groups) == 5)
    for group in near.groups:
        ffn.reply(group, group.x(torch.float32))
    for number, attention in enumerate(several):
        assert torch.equal(near.answers(attention, 1)[0].partial, activations(1, number))

"""Frames: what was packed is unpacked, everything else is refused."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from step3.wire import Format, FrameError, Shapes, frames
from step3.wire.frames import HEADER_BYTES, Header, Kind
from step3.wire.layout import call_layout

KEY = b"k" * 32
SHAPES = Shapes(hidden=7168, max_tokens=128, layers=61, experts=48, top_k=3, slots=4)
CALL = Header(
    Kind.CALL,
    Format.FP8,
    Format.BFLOAT16,
    instance=3,
    epoch=7,
    lane=2,
    layer=60,
    slot=3,
    top_k=3,
    call=1 << 40,
    serial=12,
    tokens=128,
    hidden=7168,
    payload_bytes=call_layout(Format.FP8, 128, 7168, 3).nbytes,
    checksum=0xDEADBEEF,
    arrived_ns=1,
    started_ns=2,
    finished_ns=3,
)

u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
headers = st.builds(
    Header,
    kind=st.sampled_from(Kind),
    activations=st.sampled_from(Format),
    partials=st.sampled_from(Format),
    instance=u32,
    epoch=u32,
    lane=u16,
    layer=u16,
    slot=u16,
    top_k=u16,
    call=u64,
    serial=u64,
    tokens=u32,
    hidden=u32,
    payload_bytes=u64,
    checksum=u64,
    arrived_ns=u64,
    started_ns=u64,
    finished_ns=u64,
)


@given(headers)
def test_a_header_comes_back_as_it_was(header: Header) -> None:
    assert frames.unpack(frames.pack(header, KEY), KEY) == header


def test_a_header_always_has_the_same_length() -> None:
    assert len(frames.pack(CALL, KEY)) == len(frames.pack(Header(Kind.HEARTBEAT), KEY)) == HEADER_BYTES == 104


@given(st.binary(max_size=2 * HEADER_BYTES))
def test_no_bytes_but_a_header_are_a_header(data: bytes) -> None:
    with pytest.raises(FrameError):
        frames.unpack(data, KEY)


@given(headers, st.integers(0, 8 * HEADER_BYTES - 1))
def test_a_header_with_one_bit_changed_is_refused(header: Header, bit: int) -> None:
    data = bytearray(frames.pack(header, KEY))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameError):
        frames.unpack(data, KEY)


def test_a_header_that_another_key_sealed_is_refused() -> None:
    with pytest.raises(FrameError, match="tag is wrong"):
        frames.unpack(frames.pack(CALL, KEY), b"K" * 32)


def test_a_pickle_is_refused_for_its_first_bytes() -> None:
    data = pickle.dumps(list(range(1000)))[:HEADER_BYTES]
    with pytest.raises(FrameError, match="no frame"):
        frames.unpack(data, KEY)


@given(headers)
def test_what_check_lets_pass_has_the_length_that_its_shape_explains(header: Header) -> None:
    try:
        frames.check(header, SHAPES)
    except FrameError:
        return
    assert header.payload_bytes <= call_layout(Format.FLOAT32, 128, 7168, 3).nbytes


def test_check_lets_a_call_pass() -> None:
    frames.check(CALL, SHAPES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"payload_bytes": 2 << 30}, "claims 2,147,483,648 bytes"),
        ({"payload_bytes": CALL.payload_bytes - 64}, "claims"),
        ({"payload_bytes": 0}, "claims"),
        ({"tokens": 129}, "129 tokens"),
        ({"tokens": 0}, "0 tokens"),
        ({"hidden": 7296}, "7296 channels"),
        ({"top_k": 2}, "top 2"),
        ({"slot": 4}, "slot 4"),
        ({"layer": 61}, "layer 61"),
        ({"partials": Format.FP8}, "fp8"),
        ({"kind": Kind.HEARTBEAT}, "heartbeat frame claims"),
        ({"kind": Kind.PARTIAL, "payload_bytes": 4 * 128 * 7168}, "partial frame claims"),
        ({"kind": Kind.ERROR, "payload_bytes": 1025}, "error frame claims"),
        ({"kind": Kind.GOODBYE, "payload_bytes": 2 << 30}, "goodbye frame claims"),
    ],
)
def test_check_refuses_numbers_that_do_not_fit(change: dict[str, int], message: str) -> None:
    with pytest.raises(FrameError, match=message):
        frames.check(CALL._replace(**change), SHAPES)


@pytest.mark.parametrize("nbytes", [1, 64, 8168, 8169, 3 * 8168, 100_000])
def test_a_checksum_sees_every_byte(nbytes: int) -> None:
    data = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)
    right = frames.checksum(data.data)
    for at in {0, nbytes // 3, nbytes // 2, nbytes - 1}:
        data[at] ^= 0x10
        assert frames.checksum(data.data) != right
        data[at] ^= 0x10
    assert frames.checksum(data.data) == right


def test_a_checksum_sees_a_missing_tail_and_words_that_change_places() -> None:
    data = np.random.default_rng(0).integers(0, 256, 1 << 16, np.uint8)
    right = frames.checksum(data.data)
    assert frames.checksum(data[:-64].data) != right
    words = data.view(np.uint64)
    words[[5, 6]] = words[[6, 5]]
    assert frames.checksum(data.data) != right

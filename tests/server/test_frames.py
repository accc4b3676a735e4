import pytest

from step3.server import frames
from step3.server.frames import FrameError, FrameReader, encode

MESSAGES = [[1, "item", {"text": "ö\n", "bytes": b"\xff"}], [2, "end", None], [3, "item", {7: [1.5, [], ""]}]]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_messages_come_out_whole_however_the_bytes_are_cut(size: int) -> None:
    data, reader = b"".join(map(encode, MESSAGES)), FrameReader()
    found = []
    for start in range(0, len(data), size):
        found += reader.push(data[start : start + size])
    assert found == MESSAGES


def test_a_frame_that_is_too_long_is_refused_by_its_length_alone() -> None:
    with pytest.raises(FrameError, match="over the 8 allowed"):
        FrameReader(max_bytes=8).push(b"\x00\x00\x00\x09")


def test_bytes_that_are_not_msgpack_are_refused() -> None:
    with pytest.raises(FrameError, match="not msgpack"):
        FrameReader().push(b"\x00\x00\x00\x01\xc1")


def test_a_message_that_is_too_long_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 100)
    with pytest.raises(FrameError, match="over the 100"):
        encode("x" * 101)

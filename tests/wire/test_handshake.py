"""The proofs: new, of the right side, over all that was said."""

import pytest

from step3.wire import FrameError, Role, Shapes, WireError, handshake
from step3.wire.handshake import CONNECTING, LISTENING, Hello

SECRET = b"a secret of some length"
ATTENTION = Hello(Role.ATTENTION, 3, 9, Shapes(hidden=7168, max_tokens=128, layers=61, experts=48, top_k=3))


def test_a_hello_is_read_as_it_was_written() -> None:
    said = handshake.challenge()
    message = handshake.hello(SECRET, CONNECTING, said, ATTENTION)
    assert len(message) == handshake.HELLO_BYTES
    assert handshake.read_hello(SECRET, CONNECTING, said, message) == ATTENTION


def test_another_secret_is_refused() -> None:
    said = handshake.challenge()
    message = handshake.hello(b"another secret of some length", CONNECTING, said, ATTENTION)
    with pytest.raises(FrameError, match="wrong secret"):
        handshake.read_hello(SECRET, CONNECTING, said, message)


def test_a_hello_of_an_earlier_connection_is_refused() -> None:
    message = handshake.hello(SECRET, CONNECTING, handshake.challenge(), ATTENTION)
    with pytest.raises(FrameError, match="wrong secret"):
        handshake.read_hello(SECRET, CONNECTING, handshake.challenge(), message)


def test_a_hello_sent_back_is_refused() -> None:
    said = handshake.challenge()
    message = handshake.hello(SECRET, CONNECTING, said, ATTENTION)
    with pytest.raises(FrameError, match="wrong secret"):
        handshake.read_hello(SECRET, LISTENING, said, message)


def test_a_changed_hello_is_refused() -> None:
    said = handshake.challenge()
    message = handshake.hello(SECRET, CONNECTING, said, ATTENTION)
    for at in range(len(message)):
        changed = bytearray(message)
        changed[at] ^= 1
        with pytest.raises(FrameError, match="wrong secret"):
            handshake.read_hello(SECRET, CONNECTING, said, bytes(changed))


def test_another_protocol_is_refused() -> None:
    with pytest.raises(FrameError, match="does not speak"):
        handshake.check_challenge(b"HTTP/1.1 400 Bad Request".ljust(handshake.CHALLENGE_BYTES))


def test_keys_differ_between_directions_and_connections() -> None:
    first, second = (handshake.keys(SECRET, handshake.challenge()) for _ in range(2))
    assert len({first.listening, first.connecting, second.listening, second.connecting}) == 4


@pytest.mark.parametrize("secret", [b"", b"short", "a text, not bytes, of some length"])
def test_what_is_no_secret_is_refused(secret: bytes) -> None:
    with pytest.raises(WireError, match="at least 16 bytes"):
        handshake.check_secret(secret)

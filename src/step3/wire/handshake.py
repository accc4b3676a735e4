"""Who is there: both sides prove that they know the secret before anything else is accepted.

The listening side sends a nonce. The connecting side answers with its own nonce, what it is, and a proof;
then the listening side does. A proof is HMAC-SHA256 of the secret over a label of its side and all that was
said so far, so that no message can be replayed (the nonces are new), reflected (the labels differ) or
changed. The connecting side proves first: who does not know the secret learns nothing made with it. The keys
of the two directions follow from the same transcript.
"""

from __future__ import annotations

import enum
import hmac
import secrets
import struct
from dataclasses import dataclass

from step3.wire.errors import FrameError, WireError
from step3.wire.formats import Shapes

NONCE_BYTES = 32
PROOF_BYTES = 32
LEAST_SECRET_BYTES = 16

_GREETING = b"S3AF wire 1\n".ljust(32, b"\0")
CHALLENGE_BYTES = len(_GREETING) + NONCE_BYTES

_HELLO = struct.Struct("<BxHIIIIIIHH")
_RINGS = 1
"""A bit of what a side can do."""
HELLO_BYTES = NONCE_BYTES + _HELLO.size + PROOF_BYTES


class Role(enum.IntEnum):
    """What an instance does."""

    ATTENTION = 1
    FFN = 2


@dataclass(frozen=True)
class Hello:
    """What a side says of itself.

    Attributes:
        epoch: grows whenever the instance is replaced.
        shapes: what the side can take; the attention side's is what holds.
        rings: whether the side can read and write rings in shared memory.
    """

    role: Role
    instance: int
    epoch: int
    shapes: Shapes
    rings: bool = False


@dataclass(frozen=True)
class Keys:
    """Seals of the headers of each direction."""

    listening: bytes
    connecting: bytes


def check_secret(secret: bytes) -> None:
    """Raises:
    WireError: it is too short to be one.
    """
    if not isinstance(secret, bytes) or len(secret) < LEAST_SECRET_BYTES:
        raise WireError(
            f"the wire's secret must be at least {LEAST_SECRET_BYTES} bytes, say secrets.token_bytes(32)"
        )


def challenge() -> bytes:
    """What the listening side sends first."""
    return _GREETING + secrets.token_bytes(NONCE_BYTES)


def check_challenge(message: bytes | bytearray) -> None:
    """Raises:
    FrameError: this is not a listening side of the wire, or of another version.
    """
    if message[: len(_GREETING)] != _GREETING:
        raise FrameError("the other side does not speak this version of the wire")


def hello(secret: bytes, label: bytes, said: bytes, own: Hello) -> bytes:
    """What a side says of itself, with a proof that it knows the secret and heard what was `said`."""
    shapes = own.shapes
    body = secrets.token_bytes(NONCE_BYTES) + _HELLO.pack(
        own.role,
        _RINGS if own.rings else 0,
        own.instance,
        own.epoch,
        shapes.hidden,
        shapes.max_tokens,
        shapes.layers,
        shapes.experts,
        shapes.top_k,
        shapes.slots,
    )
    return body + _mac(secret, label, said + body)


def read_hello(secret: bytes, label: bytes, said: bytes, message: bytes) -> Hello:
    """Checks the proof, then reads the rest.

    Raises:
        FrameError: the proof is wrong, or the numbers make no sense.
    """
    body, proof = message[:-PROOF_BYTES], message[-PROOF_BYTES:]
    if not hmac.compare_digest(_mac(secret, label, said + body), proof):
        raise FrameError("wrong secret")
    role, abilities, instance, epoch, hidden, max_tokens, layers, experts, top_k, slots = _HELLO.unpack_from(
        body, NONCE_BYTES
    )
    try:
        shapes = Shapes(hidden, max_tokens, layers, experts, top_k, slots)
        return Hello(Role(role), instance, epoch, shapes, bool(abilities & _RINGS))
    except (ValueError, WireError) as error:
        raise FrameError(f"a hello makes no sense: {error}") from None


def keys(secret: bytes, said: bytes) -> Keys:
    """The keys of a connection, from all that was said."""
    return Keys(_mac(secret, b"step3 listening key", said), _mac(secret, b"step3 connecting key", said))


CONNECTING = b"step3 connecting side"
LISTENING = b"step3 listening side"


def _mac(secret: bytes, label: bytes, message: bytes) -> bytes:
    return hmac.digest(secret, label + b"\0" + message, "sha256")

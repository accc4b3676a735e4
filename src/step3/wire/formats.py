"""What an endpoint sends and the most it takes: number formats, sizes, times."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch

from step3.wire.errors import WireError

BLOCK = 128
"""Channels that share one scale of a token in `Format.FP8`."""

DEFAULT_SPIN = 1e-4
"""Seconds for which an endpoint looks again and again before it sleeps: about what waking up costs twice."""

MAX_SEGMENT_BYTES = 1 << 40
"""The most address space that the slots of one connection may take; only what is used becomes memory."""


class Format(enum.IntEnum):
    """How activations or partial sums are written; the numbers are those of the frame header."""

    FLOAT32 = 1
    BFLOAT16 = 2
    FP8 = 3
    """float8_e4m3fn with a float32 scale for each token and 128 channels; activations only."""

    # Enum's own hashes the name, in Python: too slow for what every frame looks up.
    __hash__ = int.__hash__

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the stored values."""
        return _DTYPES[self]


_DTYPES = {
    Format.FLOAT32: torch.float32,
    Format.BFLOAT16: torch.bfloat16,
    Format.FP8: torch.float8_e4m3fn,
}


@dataclass(frozen=True)
class Shapes:
    """What every call of a connection looks like; both sides must agree on all but `slots` and `max_tokens`,
    where the attention side must ask for no more than the FFN side allows.

    Attributes:
        hidden: channels of activations and partial sums.
        max_tokens: most tokens of a call.
        layers: layers are numbered below it.
        experts: expert ids are below it; 0 for a model without experts.
        top_k: experts of a token; 0 for a model without experts.
        slots: calls that may be outstanding on a connection, at least one for each lane. An FFN endpoint
            takes connections with up to this many.

    Raises:
        WireError: a size is out of range.
    """

    hidden: int
    max_tokens: int
    layers: int
    experts: int = 0
    top_k: int = 0
    slots: int = 4

    def __post_init__(self) -> None:
        for name, least, most in (
            ("hidden", 1, 1 << 20),
            ("max_tokens", 1, 1 << 20),
            ("layers", 1, 1 << 16),
            ("experts", 0, 1 << 20),
            ("top_k", 0, 1 << 10),
            ("slots", 1, 1 << 10),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise WireError(
                    f"the wire's {name} must be a whole number from {least} to {most:,}, not {value!r}"
                )
        if self.top_k > self.experts:
            raise WireError(f"the wire's top_k of {self.top_k} is over its {self.experts} experts")


@dataclass(frozen=True)
class Timing:
    """Deadlines of a connection, in seconds.

    Attributes:
        heartbeat: a peer that has nothing to say says so this often.
        silence: a peer that was not heard for this long is gone. More than a few heartbeats.
        handshake: a connection must have proved that it knows the secret by then.

    Raises:
        WireError: a time is not positive, or `silence` is not longer than `heartbeat`.
    """

    heartbeat: float = 0.1
    silence: float = 1.0
    handshake: float = 5.0

    def __post_init__(self) -> None:
        if not (0 < self.heartbeat < self.silence and self.handshake > 0):
            raise WireError(
                f"the wire's times must be positive and its silence of {self.silence} s longer than "
                f"its heartbeat of {self.heartbeat} s"
            )

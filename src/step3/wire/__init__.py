"""What passes between instances: calls out, partial sums back. Usable alone; see docs/wire.md."""

from step3.wire.attention import AttentionEndpoint
from step3.wire.codec import Fp8, decode_fp8, encode_fp8
from step3.wire.connection import Peer
from step3.wire.endpoint import Endpoint
from step3.wire.errors import DeadlineError, FrameError, NoSlotError, PeerGoneError, WireError
from step3.wire.events import Answer, Event, Failed, Gone, Joined, Late, Ticket, Times, Unreachable
from step3.wire.ffn import Call, FFNEndpoint, Group
from step3.wire.formats import Format, Shapes, Timing
from step3.wire.handshake import Role
from step3.wire.layout import CallLayout, call_layout

__all__ = [
    "Answer",
    "AttentionEndpoint",
    "Call",
    "CallLayout",
    "DeadlineError",
    "Endpoint",
    "Event",
    "FFNEndpoint",
    "Failed",
    "Format",
    "Fp8",
    "FrameError",
    "Gone",
    "Group",
    "Joined",
    "Late",
    "NoSlotError",
    "Peer",
    "PeerGoneError",
    "Role",
    "Shapes",
    "Ticket",
    "Times",
    "Timing",
    "Unreachable",
    "WireError",
    "call_layout",
    "decode_fp8",
    "encode_fp8",
]

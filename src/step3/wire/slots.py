"""The registered buffers of a connection: slots, each a place for one call and for its answer.

A slot has one owner at a time. The attention side takes it, writes the call and sends; the FFN side reads,
writes the answer and sends; the attention side reads and gives the slot back. So neither side ever waits for
room, and nothing is allocated for a call.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

from step3.wire.errors import WireError
from step3.wire.formats import MAX_SEGMENT_BYTES, Shapes
from step3.wire.layout import slot_nbytes


class Slots:
    """`shapes.slots` slots in one piece of memory."""

    def __init__(self, shapes: Shapes, memory: mmap.mmap) -> None:
        self._call_bytes, self._answer_bytes = slot_nbytes(shapes)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        rows = whole[: segment_nbytes(shapes)].view(shapes.slots, -1)
        self._calls = [row[: self._call_bytes] for row in rows]
        self._answers = [row[self._call_bytes :] for row in rows]

    def call(self, slot: int) -> Tensor:
        """uint8; where the slot's call is."""
        return self._calls[slot]

    def answer(self, slot: int) -> Tensor:
        """uint8; where the slot's answer is."""
        return self._answers[slot]


def segment_nbytes(shapes: Shapes) -> int:
    """What all slots of a connection take.

    Raises:
        WireError: it is more than `MAX_SEGMENT_BYTES`.
    """
    nbytes = shapes.slots * sum(slot_nbytes(shapes))
    if nbytes > MAX_SEGMENT_BYTES:
        raise WireError(
            f"{shapes.slots} slots of {shapes.max_tokens} tokens take {nbytes:,} bytes; ask for fewer"
        )
    return nbytes


def private_memory(shapes: Shapes) -> mmap.mmap:
    """Memory of this process alone; pages come into being when they are first written."""
    return mmap.mmap(-1, segment_nbytes(shapes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

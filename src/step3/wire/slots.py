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
from step3.wire.formats import MAX_SEGMENT_BYTES, Format, Shapes
from step3.wire.layout import CallViews, call_layout, partial_view, slot_nbytes

_MAX_VIEWS = 4096


class Slots:
    """`shapes.slots` slots in one piece of memory, and the views of it that were used before.

    Attributes:
        address: of the first.
    """

    def __init__(self, shapes: Shapes, memory: mmap.mmap, start: int = 0) -> None:
        """They begin at byte `start`."""
        self._call_nbytes, answer_nbytes = slot_nbytes(shapes)
        self._nbytes = self._call_nbytes + answer_nbytes
        self._hidden = shapes.hidden
        self._bytes = memoryview(memory)[start:]
        self._rows = torch.frombuffer(memory, dtype=torch.uint8, offset=start).view(
            shapes.slots, self._nbytes
        )
        self.address = self._rows.data_ptr()
        self._calls: dict[tuple[int, Format, int, int], CallViews] = {}
        self._answers: dict[tuple[int, Format, int], Tensor] = {}

    def call_at(self, slot: int) -> int:
        """The address of a slot's call."""
        return self.address + slot * self._nbytes

    def answer_at(self, slot: int) -> int:
        """The address of a slot's answer."""
        return self.address + slot * self._nbytes + self._call_nbytes

    def call_bytes(self, slot: int, nbytes: int) -> memoryview:
        """The first bytes of a slot's call."""
        start = slot * self._nbytes
        return self._bytes[start : start + nbytes]

    def answer_bytes(self, slot: int, nbytes: int) -> memoryview:
        """The first bytes of a slot's answer."""
        start = slot * self._nbytes + self._call_nbytes
        return self._bytes[start : start + nbytes]

    def call(self, slot: int, format: Format, tokens: int, top_k: int) -> CallViews:
        """The tensors of a slot's call."""
        key = (slot, format, tokens, top_k)
        views = self._calls.get(key)
        if views is None:
            if len(self._calls) >= _MAX_VIEWS:
                self._calls.clear()
            views = call_layout(format, tokens, self._hidden, top_k).views(self._rows[slot])
            self._calls[key] = views
        return views

    def answer(self, slot: int, format: Format, tokens: int) -> Tensor:
        """`[tokens, hidden]` of a slot's answer."""
        key = (slot, format, tokens)
        view = self._answers.get(key)
        if view is None:
            if len(self._answers) >= _MAX_VIEWS:
                self._answers.clear()
            view = partial_view(self._rows[slot, self._call_nbytes :], format, tokens, self._hidden)
            self._answers[key] = view
        return view


def segment_nbytes(shapes: Shapes) -> int:
    """What all slots of a connection take.

    Raises:
        WireError: it is more than `MAX_SEGMENT_BYTES`.
    """
    nbytes = shapes.slots * sum(slot_nbytes(shapes))
    if nbytes > MAX_SEGMENT_BYTES:
        raise WireError(
            f"{shapes.slots} slots of {shapes.max_tokens:,} tokens take {nbytes:,} bytes; ask for fewer"
        )
    return nbytes


def private_memory(nbytes: int) -> mmap.mmap:
    """Memory of this process alone; pages come into being when they are first written."""
    return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

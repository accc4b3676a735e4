"""Two rings of headers in a shared segment, one each way, in place of frames on a socket.

Only the two processes of a connection have the segment, and both have proved themselves before it is made. So
a header in a ring has no MAC; its numbers are held against the connection's limits all the same, after it was
copied to where the peer cannot change it.
"""

from __future__ import annotations

import ctypes
import mmap
import os

from step3.wire.native import Reader, Writer, open_library


class Rings:
    """One side's ends: it writes one ring, and reads the other.

    Attributes:
        bell: an eventfd that the peer rings when this side sleeps.
    """

    def __init__(
        self, memory: mmap.mmap, address: int, slots: int, bells: tuple[int, int], *, listening: bool
    ) -> None:
        """
        Args:
            memory: kept as long as the rings; they begin at `address`.
            bells: of the listening side and of the connecting side; closed by `close`.
        """
        library = open_library()
        assert library is not None
        self._memory, self._bells = memory, bells
        self.bell = bells[0 if listening else 1]
        entries = num_entries(slots)
        # The connecting side writes the first ring.
        first, second = address, address + library.step3_wire_ring_bytes(entries)
        written, read = (second, first) if listening else (first, second)
        self._writer = Writer(written, entries, 0, bells[1 if listening else 0])
        self._reader = Reader(read, entries, 0)
        self._writer_at = ctypes.addressof(self._writer)
        self.reader_at = ctypes.addressof(self._reader)
        self._send, self._send_call = library.step3_wire_send, library.step3_wire_send_call
        self.ask_for_bells()

    def ask_for_bells(self) -> None:
        """The peer is to ring for every frame until this side has waited."""
        ctypes.c_uint32.from_address(self._reader.ring).value = 1

    def send(self, header: bytes, to: int = 0, source: int = 0, nbytes: int = 0) -> None:
        """Copies a payload from one address to another, then sends a header."""
        self._send(self._writer_at, header, to, source, nbytes)

    def send_call(self, header: bytes, to: int, *parts: int) -> None:
        """Sends a call whose tensors lie apart; see step3_wire.h."""
        self._send_call(self._writer_at, header, to, *parts)

    def close(self) -> None:
        for bell in self._bells:
            os.close(bell)


def num_entries(slots: int) -> int:
    """Frames that a ring holds: one for each slot at least, a power of two."""
    return 1 << (slots - 1).bit_length()


def rings_nbytes(slots: int) -> int:
    """What both rings take, in whole pages."""
    library = open_library()
    assert library is not None
    nbytes = 2 * library.step3_wire_ring_bytes(num_entries(slots))
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE

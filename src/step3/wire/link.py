"""What a transport is to a connection: a stream for frames, and memory for slots.

NCCL or RDMA would be one more `Link`: a socket for the frames, registered memory for the slots.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Protocol


class Link(Protocol):
    """A stream to one peer that waits for nothing, or for a few milliseconds where that is cheaper.

    Attributes:
        address: of the peer, for people.
        shares_memory: whether what one side writes to a slot is there for the other, so that payloads do not
            travel on the stream.
    """

    address: str
    shares_memory: bool

    def fileno(self) -> int:
        """For waiting until it can be read."""
        ...

    def recv_into(self, buffer: memoryview) -> int:
        """Reads at most `len(buffer)` bytes; 0 at the end of the stream.

        Raises:
            BlockingIOError: there is nothing to read yet.
            OSError: the connection is lost.
        """
        ...

    def buffered(self) -> bool:
        """Whether bytes have left the socket that `recv_into` has not yet given."""
        ...

    def send(self, parts: Sequence[memoryview]) -> int:
        """Writes as much of the parts as goes now.

        Raises:
            BlockingIOError: nothing goes now.
            OSError: the connection is lost.
        """
        ...

    def offer_memory(self, nbytes: int, bells: int) -> tuple[mmap.mmap, list[int]]:
        """The listening side's memory, and eventfds; given to the peer too where memory is shared.

        Args:
            bells: how many eventfds; 0 where memory is not shared.
        """
        ...

    def accept_memory(self, nbytes: int, bells: int) -> tuple[mmap.mmap, list[int]]:
        """The connecting side's memory and eventfds.

        Raises:
            FrameError: the peer gave none, or what it gave cannot be used safely.
        """
        ...

    def close(self) -> None:
        """Ends the stream."""
        ...


class Listener(Protocol):
    """Takes connections at an address."""

    address: str

    def fileno(self) -> int:
        """For waiting until somebody comes."""
        ...

    def accept(self) -> Link:
        """The next connection.

        Raises:
            BlockingIOError: nobody waits.
            OSError: whoever waited may not connect, or has left.
        """
        ...

    def close(self) -> None:
        """Takes no more."""
        ...

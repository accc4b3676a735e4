"""Where an endpoint waits: descriptors by epoll, and rings, which are looked at first."""

from __future__ import annotations

import ctypes
import math
import os
import select
import time

from step3.wire.connection import Connection
from step3.wire.native import HEADER_BYTES, Found, open_library


class Waiter:
    """Waits for descriptors, and for frames in the rings of connections.

    Attributes:
        frame: the header of the frame that `wait` found, until the next wait.

    Args:
        spin: seconds for which a wait looks again and again before it sleeps.
    """

    def __init__(self, spin: float) -> None:
        self._spin = spin
        self._epoll = select.epoll()
        self._library = open_library()
        self._ringed: list[Connection] = []
        self._readers = (ctypes.c_void_p * 1)()
        self._found = Found(reader=-1)
        self._found_at = ctypes.addressof(self._found)
        at = Found.header.offset
        self.frame = memoryview(self._found).cast("B")[at : at + HEADER_BYTES]
        self._num_streams = 0
        self._is_watched = False

    def fileno(self) -> int:
        """A descriptor that can be read when waiting would find something."""
        self._is_watched = True
        for one in self._ringed:
            assert one.rings is not None
            one.rings.ask_for_bells()
        return self._epoll.fileno()

    def register(self, fileno: int, events: int = select.EPOLLIN, *, is_stream: bool = False) -> None:
        """Adds a descriptor.

        Args:
            is_stream: frames come over it, so that spinning must look at it often.
        """
        self._epoll.register(fileno, events)
        self._num_streams += is_stream

    def only_read(self, fileno: int) -> None:
        self._epoll.modify(fileno, select.EPOLLIN)

    def unregister(self, fileno: int, *, is_stream: bool = False) -> None:
        self._epoll.unregister(fileno)
        self._num_streams -= is_stream

    def add_rings(self, connection: Connection) -> None:
        """Its frames come in rings from now on, and its descriptor only tells of its end."""
        assert connection.rings is not None
        self._epoll.register(connection.rings.bell, select.EPOLLIN | select.EPOLLET)
        self._num_streams -= 1
        self._set_rings([*self._ringed, connection])

    def drop_rings(self, connection: Connection) -> None:
        """Undoes `add_rings`."""
        assert connection.rings is not None
        self._epoll.unregister(connection.rings.bell)
        self._num_streams += 1
        self._set_rings([one for one in self._ringed if one is not connection])

    def wait(self, timeout: float) -> tuple[Connection | None, list[int], bool]:
        """Waits for at most `timeout` seconds.

        Returns:
            A connection whose frame is in `frame`, descriptors that are ready, and whether nothing more is
            there. Neither of the first if it was too long, or a signal came.
        """
        if self._library is None:
            ready = self._poll(timeout)
            return None, ready, not ready
        found = self._found
        self._library.step3_wire_wait(
            self._readers,
            len(self._ringed),
            self._epoll.fileno(),
            int(1e9 * self._spin) if timeout else 0,
            -1 if timeout == math.inf else int(1e9 * timeout),
            self._num_streams,
            self._is_watched,
            self._found_at,
        )
        reader, count = found.reader, found.num_ready
        ready = found.ready[:count] if count else []
        if reader < 0:
            return None, ready, not count
        return self._ringed[reader], ready, not (count or found.has_more or self._num_streams)

    def take(self, connection: Connection) -> bool:
        """Whether a connection has a frame in its ring; it is then in `frame`."""
        if self._library is None or connection.rings is None:
            return False
        return bool(self._library.step3_wire_take(connection.rings.reader_at, self._found_at))

    @property
    def is_torn(self) -> bool:
        """Whether the frame that `wait` found is another than the one that was due."""
        return bool(self._found.torn)

    def close(self) -> None:
        self._epoll.close()

    def _poll(self, timeout: float) -> list[int]:
        spin_until = time.monotonic() + min(self._spin, timeout)
        while time.monotonic() < spin_until:
            ready = self._epoll.poll(0)
            if ready:
                return [fileno for fileno, _ in ready]
            os.sched_yield()
        return [fileno for fileno, _ in self._epoll.poll(None if timeout == math.inf else timeout)]

    def _set_rings(self, connections: list[Connection]) -> None:
        self._ringed = connections
        self._found.next = 0
        self._readers = (ctypes.c_void_p * max(1, len(connections)))(
            *(one.rings.reader_at for one in connections if one.rings is not None)
        )

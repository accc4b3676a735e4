"""The thread that moves bytes while the owner of an endpoint computes."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable

from step3.wire.connection import Connection
from step3.wire.frames import Header, Kind

_PAUSE = 0.001


class Carrier:
    """Sends heartbeats, and what slow peers did not take at once.

    Args:
        connections: those of the endpoint, as of now; called from the thread.
        heartbeat: seconds from one to the next.
    """

    def __init__(
        self, connections: Callable[[], tuple[Connection, ...]], epoch: int, heartbeat: float
    ) -> None:
        self._connections, self._heartbeat = connections, heartbeat
        self._beat = Header(Kind.HEARTBEAT, epoch=epoch)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="step3-wire-carrier", daemon=True)
        self._thread.start()

    def ring(self) -> None:
        """Something is to be sent."""
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Ends the thread."""
        self._closed = True
        self.ring()
        self._thread.join()
        os.close(self._bell)

    def _run(self) -> None:
        next_beat = time.monotonic()
        while not self._closed:
            unsent = [one for one in self._connections() if not one.flush()]
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + self._heartbeat
                for one in self._connections():
                    if one.ready and one not in unsent:
                        one.send(self._beat)
            if unsent:
                time.sleep(_PAUSE)
            poll = select.poll()
            poll.register(self._bell, select.POLLIN)
            for one in unsent:
                if (fileno := one.link.fileno()) >= 0:
                    poll.register(fileno, select.POLLOUT)
            if any(fileno == self._bell for fileno, _ in poll.poll(1e3 * max(next_beat - now, 0))):
                os.eventfd_read(self._bell)

"""What both kinds of endpoint have in common: peers that come and go, and one place to wait."""

from __future__ import annotations

import logging
import os
import select
import ssl
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from step3.wire import addresses
from step3.wire.carrier import Carrier
from step3.wire.connection import Connection, Peer
from step3.wire.errors import DeadlineError, FrameError, PeerGoneError, WireError
from step3.wire.events import Event, Gone, Joined, Ticket, Unreachable
from step3.wire.formats import DEFAULT_SPIN, Shapes, Timing
from step3.wire.frames import Header, Kind
from step3.wire.handshake import Hello, Role, check_secret
from step3.wire.link import Link, Listener
from step3.wire.native import open_library, why_not
from step3.wire.waiter import Waiter

log = logging.getLogger("step3.wire")

MAX_STRANGERS = 64
"""Connections that have not yet proved themselves; when one more comes, the oldest is dropped."""

_ROUNDS = 64

_Self = TypeVar("_Self", bound="Endpoint")


class Endpoint(ABC):
    """Connections to the other role's endpoints; used by one thread, but for `wake`.

    Args:
        instance: number of this instance among those of its role.
        shapes: what calls look like.
        secret: known to all endpoints that may talk to each other, at least 16 bytes.
        epoch: larger than that of any earlier instance of this number.
        tls: context for `listen` (a server's), or for `connect` (a client's), over TCP.
        spin: seconds for which waiting looks again and again before it sleeps; it yields the core in between.
        checksums: whether payloads over TCP are sent with a checksum beyond TCP's own; it costs a quarter
            of a round trip and more. Headers always have one.

    Raises:
        WireError: the secret is too short, or a number is out of range.
    """

    _takes_all = True
    """Whether a wait takes all that has arrived before it ends, so that calls can be merged."""

    def __init__(
        self,
        role: Role,
        instance: int,
        shapes: Shapes,
        secret: bytes,
        epoch: int = 0,
        timing: Timing | None = None,
        tls: ssl.SSLContext | None = None,
        spin: float = DEFAULT_SPIN,
        checksums: bool = False,
    ) -> None:
        check_secret(secret)
        for name, value in (("instance", instance), ("epoch", epoch)):
            if not 0 <= value < 1 << 32:
                raise WireError(f"an endpoint's {name} must be from 0 to {(1 << 32) - 1}, not {value}")
        self.role, self.instance, self.epoch, self.shapes = role, instance, epoch, shapes
        self._timing, self._checksums = timing or Timing(), checksums
        self._hello = Hello(role, instance, epoch, shapes, rings=open_library() is not None)
        if not self._hello.rings:
            log.warning("%s", why_not())
        self._secret, self._tls = secret, tls
        self._events: deque[Event] = deque()
        self._listeners: dict[int, Listener] = {}
        self._connections: dict[int, Connection] = {}
        self._all: tuple[Connection, ...] = ()  # for the carrier; replaced, never changed
        self._peers: dict[Peer, Connection] = {}
        self._epochs: dict[tuple[Role, int], int] = {}
        self._farewells: dict[Connection, str] = {}
        self._unread: set[int] = set()
        self._check_at = 0.0
        self._woken = False
        self._closed = False
        self._waiter = Waiter(spin)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # A descriptor that is closed may be somebody else's the next moment: nobody may ring it then.
        self._ringing, self._has_bell = threading.Lock(), True
        self._waiter.register(self._bell)
        self._carrier = Carrier(lambda: self._all, epoch, self._timing.heartbeat)

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def peers(self) -> tuple[Peer, ...]:
        """Who can be used now."""
        return tuple(self._peers)

    def fileno(self) -> int:
        """A descriptor that can be read when waiting would find something; for a selector of one's own."""
        return self._waiter.fileno()

    def listen(self, address: str) -> str:
        """Takes connections at `tcp://host:port` (port 0: any free one) or, from this host, `shm://name`.

        Returns:
            The address to connect to; the host is as given.

        Raises:
            WireError: the address cannot be read or used.
        """
        listener = addresses.listen(address, self._tls)
        self._listeners[listener.fileno()] = listener
        self._waiter.register(listener.fileno())
        return listener.address

    def connect(self, address: str) -> None:
        """Begins to connect; `Joined` or `Unreachable` will tell. A host's name is looked up at once.

        Raises:
            WireError: the address cannot be read.
        """
        try:
            link = addresses.dial(address, self._tls)
        except OSError as error:
            self._events.append(Unreachable(address, error.strerror or str(error)))
            return
        self._begin(link, listening=False)

    def wait_for_peers(self, count: int, timeout: float) -> tuple[Peer, ...]:
        """Waits until `count` peers are there; events are kept for later.

        Raises:
            DeadlineError: they were not there in time.
            WireError: a `connect` came to nothing.
        """
        until = time.monotonic() + timeout
        while len(self._peers) < count:
            failed = next((event for event in self._events if isinstance(event, Unreachable)), None)
            if failed is not None:
                raise WireError(f"cannot reach {failed.address}: {failed.reason}")
            if time.monotonic() >= until:
                raise DeadlineError(f"{len(self._peers)} of {count} peers came within {timeout:g} s")
            self._pump(until, lambda: len(self._peers) >= count)
        return self.peers

    def poll(self) -> None:
        """Moves what has arrived and looks at the deadlines, without waiting; what it finds is told later."""
        self._pump(0.0, lambda: False)

    def disconnect(self, peer: Peer) -> None:
        """Ends a peer's connection at once; `Gone` follows. Nothing happens if it is gone already."""
        if peer in self._peers:
            self._end(self._peers[peer], "this side ended the connection", log_it=False)

    def wake(self) -> None:
        """Makes the owner's wait return; from any thread, and without effect once the endpoint is closed."""
        with self._ringing:
            if self._has_bell:
                os.eventfd_write(self._bell, 1)

    def close(self, patience: float = 1.0) -> None:
        """Says goodbye, sends what is left for at most `patience` seconds, and ends everything."""
        if self._closed:
            return
        self._closed = True
        for connection in self._peers.values():
            connection.send(Header(Kind.GOODBYE, epoch=self.epoch))
        until = time.monotonic() + patience
        while [one for one in self._all if not one.flush()] and time.monotonic() < until:
            time.sleep(0.001)
        self._carrier.close()
        for connection in self._all:
            connection.close()
        for listener in self._listeners.values():
            listener.close()
        self._connections.clear()
        self._peers.clear()
        self._all = ()
        self._waiter.close()
        with self._ringing:
            self._has_bell = False
            os.close(self._bell)

    def admit(self, connection: Connection, peer: Peer) -> str | None:
        """See `connection.Owner`."""
        who = (peer.role, peer.instance)
        newest = self._epochs.get(who, 0)
        if peer.epoch < newest:
            return f"{peer} is of an older epoch than {newest}, which has already been here"
        self._epochs[who] = peer.epoch
        for old in [one for one in self._peers if (one.role, one.instance) == who]:
            self._end(self._peers[old], "it has connected anew")
        self._peers[peer] = connection
        if connection.rings is not None:
            self._waiter.add_rings(connection)
        self._joined(connection, peer)
        self._events.append(Joined(peer))
        self._check_at = 0.0
        return None

    def expect(self, connection: Connection, header: Header) -> None:
        """See `connection.Owner`."""
        if header.kind not in (Kind.HEARTBEAT, Kind.GOODBYE):
            self._expect(connection, header)

    def deliver(self, connection: Connection, header: Header, text: str) -> None:
        """See `connection.Owner`."""
        if header.kind is Kind.GOODBYE:
            self._farewells[connection] = text or "it said goodbye"
        elif header.kind is not Kind.HEARTBEAT:
            self._deliver(connection, header, text)

    def unsent(self) -> None:
        """See `connection.Owner`."""
        self._carrier.ring()

    @abstractmethod
    def _joined(self, connection: Connection, peer: Peer) -> None: ...

    @abstractmethod
    def _expect(self, connection: Connection, header: Header) -> None: ...

    @abstractmethod
    def _deliver(self, connection: Connection, header: Header, text: str) -> None: ...

    @abstractmethod
    def _left(self, connection: Connection, peer: Peer) -> tuple[Ticket, ...]:
        """Forgets what was outstanding with a peer."""

    @abstractmethod
    def _late(self, now: float) -> float:
        """Reports calls that are late; when the next one will be."""

    def _connection(self, peer: Peer) -> Connection:
        connection = self._peers.get(peer)
        if connection is None:
            raise PeerGoneError(f"{peer} is gone")
        return connection

    def _take_events(self) -> list[Event]:
        events = list(self._events)
        self._events.clear()
        return events

    def _pump(self, until: float, enough: Callable[[], bool]) -> None:
        """Moves what can be moved, until there is enough, or it is `until`, or `wake` was called."""
        while True:
            now = time.monotonic()
            timeout = 0.0 if self._unread or enough() else max(0.0, min(until, self._check_at) - now)
            for _ in range(_ROUNDS):
                if not self._move(timeout) or (not self._takes_all and enough()):
                    break
                timeout = 0.0
            now = time.monotonic()
            if now >= self._check_at:
                self._check(now)
            if enough() or self._woken or now >= until:
                self._woken = False
                return

    def _move(self, timeout: float) -> bool:
        """Takes what has arrived, at most one frame of each connection; whether there may be more."""
        ringed, ready, is_all = self._waiter.wait(timeout)
        if ringed is not None:
            self._take(ringed)
        for fileno in ready:
            self._touch(fileno)
        for fileno in tuple(self._unread):
            self._touch(fileno)
        return not is_all or bool(self._unread)

    def _take(self, ringed: Connection) -> None:
        try:
            ringed.take(self._waiter.frame, self._waiter.is_torn)
        except FrameError as error:
            self._end(ringed, str(error))

    def _touch(self, fileno: int) -> None:
        if fileno == self._bell:
            os.eventfd_read(self._bell)
            self._woken = True
        elif fileno in self._listeners:
            self._accept(self._listeners[fileno])
        elif fileno in self._connections:
            self._receive(fileno, self._connections[fileno])

    def _accept(self, listener: Listener) -> None:
        try:
            link = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("%s: dropped a connection: %s", listener.address, error)
            return
        strangers = [one for one in self._all if not one.ready]
        if len(strangers) >= MAX_STRANGERS:
            self._end(
                strangers[0], f"{MAX_STRANGERS} others have come that have not proved themselves either"
            )
        self._begin(link, listening=True)

    def _begin(self, link: Link, listening: bool) -> None:
        fileno = link.fileno()
        connection = Connection(link, listening, self._hello, self._secret, self, self._checksums)
        self._connections[fileno] = connection
        self._all = (*self._all, connection)
        # A connection that is being made can be written once it is there, and must then be touched.
        events = select.EPOLLIN if listening else select.EPOLLIN | select.EPOLLOUT
        self._waiter.register(fileno, events, is_stream=True)
        self._check_at = 0.0

    def _receive(self, fileno: int, connection: Connection) -> None:
        self._unread.discard(fileno)
        if not connection.listening and not connection.ready:
            self._waiter.only_read(fileno)
        # What it wrote to its ring before it said goodbye or died.
        while connection.ready and self._waiter.take(connection):
            self._take(connection)
        try:
            if connection.receive():
                self._unread.add(fileno)
        except (FrameError, WireError, OSError) as error:
            self._end(
                connection, str(error) if isinstance(error, WireError) else error.strerror or str(error)
            )

    def _end(self, connection: Connection, reason: str, log_it: bool = True) -> None:
        if connection.closed:
            return
        fileno = connection.link.fileno()
        self._waiter.unregister(fileno, is_stream=True)
        if connection.rings is not None and connection.peer is not None:
            self._waiter.drop_rings(connection)
        self._unread.discard(fileno)
        del self._connections[fileno]
        self._all = tuple(one for one in self._all if one is not connection)
        farewell = self._farewells.pop(connection, None)
        if log_it and farewell is None:
            log.warning("dropped the connection with %s: %s", connection, reason)
        connection.close()
        peer = connection.peer
        if peer is not None:
            del self._peers[peer]
            lost = self._left(connection, peer)
            self._events.append(Gone(peer, farewell or reason, farewell is not None, lost))
        elif not connection.listening:
            self._events.append(Unreachable(connection.link.address, reason))

    def _check(self, now: float) -> None:
        """Ends connections that are silent or do not prove themselves, and reports late calls."""
        times = self._timing
        next_at = self._late(now)
        for one in self._all:
            limit = one.heard + times.silence if one.ready else one.since + times.handshake
            if now >= limit:
                spoke = (
                    f"silent for {times.silence:g} s"
                    if one.ready
                    else f"no proof within {times.handshake:g} s"
                )
                self._end(one, spoke)
            else:
                next_at = min(next_at, limit)
        self._check_at = next_at

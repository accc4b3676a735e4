"""One peer's connection: the handshake, then frames both ways.

What arrives is read by a script, a generator that yields the buffer it wants filled next and goes on when it
is full. So nothing is read past a frame, payloads land in their slot without a copy, and a peer that sends
half a frame holds up nobody.
"""

from __future__ import annotations

import logging
import mmap
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from step3.wire import frames, handshake
from step3.wire.errors import FrameError, WireError
from step3.wire.frames import Header, Kind
from step3.wire.handshake import Hello, Keys, Role
from step3.wire.link import Link
from step3.wire.rings import Rings, rings_nbytes
from step3.wire.slots import Slots, segment_nbytes

log = logging.getLogger("step3.wire")

_PARTS_AT_A_TIME = 16
_BELLS = 2
_IN_RINGS = frozenset({Kind.CALL, Kind.PARTIAL, Kind.ERROR})
"""What goes by rings where there are any; everything else is rare, and goes over the socket."""


@dataclass(frozen=True, eq=False)
class Peer:
    """The other end of one connection; a peer that connects anew is a new `Peer`.

    Attributes:
        instance: its number among those of its role.
        epoch: grows whenever the instance is replaced.
        address: where it was reached or came from, for people.
        slots: calls that may be outstanding on the connection.
    """

    role: Role
    instance: int
    epoch: int
    address: str
    slots: int

    def __str__(self) -> str:
        return f"{self.role.name.lower()} instance {self.instance} (epoch {self.epoch}, {self.address})"


class Owner(Protocol):
    """Who a connection tells what happens; only in the thread that calls `receive`."""

    def admit(self, connection: Connection, peer: Peer) -> str | None:
        """A peer has proved itself; a text in return refuses it."""
        ...

    def expect(self, connection: Connection, header: Header) -> None:
        """A frame passed all checks, its payload has not been read.

        Raises:
            FrameError: this frame may not come now.
        """
        ...

    def deliver(self, connection: Connection, header: Header, text: str) -> None:
        """A whole frame is there; the payload of an error or goodbye is `text`."""
        ...

    def unsent(self) -> None:
        """Bytes remain that `Connection.flush` must send; from any thread."""
        ...


class Connection:
    """A connection from its first byte to its end.

    The thread that owns the endpoint reads, and `send` may be called from any thread.

    Args:
        listening: whether this side was called, and so speaks first.
        own: what this side says of itself.
        checksums: whether to send payloads with a checksum; one that comes is always looked at.
    """

    def __init__(
        self, link: Link, listening: bool, own: Hello, secret: bytes, owner: Owner, checksums: bool = False
    ) -> None:
        self.link, self.listening = link, listening
        self.peer: Peer | None = None
        self.slots: Slots | None = None
        self.rings: Rings | None = None
        self.since = self.heard = time.monotonic()
        self.closed = False
        self._own, self._secret = own, secret
        self._owner, self._checksums = owner, checksums
        self._shapes = own.shapes
        self._lock = threading.Lock()
        self._queue: deque[memoryview] = deque()
        self._sent = 0
        self._whole = False
        self._key_in = self._key_out = b""
        self._script: Iterator[memoryview] = self._listen() if listening else self._connect()
        self._want = next(self._script)

    def __str__(self) -> str:
        return str(self.peer) if self.peer is not None else self.link.address

    @property
    def ready(self) -> bool:
        """Whether the handshake is done."""
        return self.peer is not None

    def receive(self) -> bool:
        """Reads what has arrived, at most one frame, to let others have their turn.

        Returns:
            Whether bytes have left the socket that are not yet used, so that waiting for it would not tell.

        Raises:
            FrameError: the peer broke the rules.
            WireError: the peer was refused.
            OSError: the connection is lost.
        """
        self._whole = False
        while not self._whole and not self.closed:
            try:
                size = self.link.recv_into(self._want)
            except BlockingIOError:
                return False
            if size == 0:
                raise ConnectionError("the other side closed the connection")
            self.heard = time.monotonic()
            self._want = self._want[size:]
            if not self._want:
                want = next(self._script)
                if not self.closed:
                    self._want = want
        return not self.closed and self.link.buffered()

    def take(self, fields: memoryview, is_torn: bool) -> None:
        """Takes a frame that came in a ring.

        Raises:
            FrameError: the peer broke the rules.
        """
        if self.closed:
            return
        if is_torn:
            raise FrameError("a frame of a ring is not the one that was due")
        header = frames.unpack_fields(fields)
        if header.kind not in _IN_RINGS:
            raise FrameError(f"a {header.kind.name.lower()} frame came in a ring")
        self.heard = time.monotonic()
        frames.check(header, self._shapes)
        self._owner.expect(self, header)
        text = ""
        if header.kind is Kind.ERROR:
            text = bytes(self._area(header)).decode(errors="replace")
        self._owner.deliver(self, header, text)

    def send_call(self, header: Header, *parts: int) -> None:
        """Writes a call to its slot and sends it by the ring; for the parts see step3_wire.h."""
        with self._lock:
            if self.rings is not None and self.slots is not None:
                self.rings.send_call(frames.pack_fields(header), self.slots.call_at(header.slot), *parts)

    def send_partial(self, header: Header, source: int, nbytes: int) -> None:
        """Writes a partial sum, `nbytes` at address `source`, to its slot and sends it by the ring."""
        with self._lock:
            if self.rings is not None and self.slots is not None:
                to = self.slots.answer_at(header.slot)
                self.rings.send(frames.pack_fields(header), to, source, nbytes)

    def send(self, header: Header, payload: memoryview | None = None) -> None:
        """Sends a frame; returns before all of it has left if the peer is slow to read. From any thread.

        Args:
            header: with the length of its payload.
            payload: bytes to send as they are now; if there are none, the payload is in its slot already and
                stays there as it is until the answer comes.
        """
        if self.rings is not None and header.kind in _IN_RINGS:
            with self._lock:
                if self.rings is not None:
                    if payload is not None:
                        self._area(header)[:] = payload
                    self.rings.send(frames.pack_fields(header))
            return
        in_slot = payload is None
        if in_slot and header.payload_bytes and not self.link.shares_memory:
            payload = self._area(header)
        checksum = 0 if payload is None or not self._checksums else frames.checksum(payload)
        with self._lock:
            if self.closed:
                return
            header = header._replace(serial=self._sent, checksum=checksum)
            self._sent += 1
            head = memoryview(frames.pack(header, self._key_out))
            self._write([head] if payload is None else [head, payload])
            if self._queue and payload is not None and not in_slot:
                self._queue[-1] = self._kept(header, self._queue[-1])

    def flush(self) -> bool:
        """Sends what remains; whether nothing remains."""
        with self._lock:
            if self._queue and not self.closed:
                parts = list(self._queue)
                self._queue.clear()
                self._write(parts)
            return not self._queue

    def close(self) -> None:
        """Ends the connection and lets go of its slots."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            self._queue.clear()
            self.link.close()
            if self.rings is not None:
                self.rings.close()
            self.rings = None
        self.slots = None
        self._script = iter(())  # it refers to this connection, and so would keep it
        self._want = memoryview(b"")

    def _write(self, parts: Sequence[memoryview]) -> None:
        if self._queue:
            self._queue.extend(parts)
            return
        rest = list(parts)
        try:
            while rest:
                size = self.link.send(rest[:_PARTS_AT_A_TIME])
                while rest and size >= len(rest[0]):
                    size -= len(rest.pop(0))
                if size:
                    rest[0] = rest[0][size:]
        except BlockingIOError:
            self._queue.extend(rest)
            self._owner.unsent()
        except OSError:
            pass  # the reading side learns of it too, and tells

    def _kept(self, header: Header, rest: memoryview) -> memoryview:
        """The unsent end of a payload, where it stays as it is until it has left."""
        if header.kind not in (Kind.CALL, Kind.PARTIAL):
            return memoryview(bytes(rest))
        kept = self._area(header)[-len(rest) :]
        kept[:] = rest
        return kept

    def _say(self, message: bytes) -> None:
        with self._lock:
            self._write([memoryview(message)])

    def _listen(self) -> Generator[memoryview, None, None]:
        said = handshake.challenge()
        self._say(said)
        message = bytearray(handshake.HELLO_BYTES)
        yield memoryview(message)
        theirs = handshake.read_hello(self._secret, handshake.CONNECTING, said, bytes(message))
        said += message
        refusal = self._meet(theirs)
        if not refusal:
            start, bells = self._plan(theirs)
            memory, made = self.link.offer_memory(start + segment_nbytes(self._shapes), bells)
            self._register(memory, start, made)
        answer = handshake.hello(self._secret, handshake.LISTENING, said, self._own)
        self._say(answer)
        self._seal(handshake.keys(self._secret, said + answer))
        if refusal:
            raise self._refuse(refusal)
        yield from self._frames(theirs)

    def _connect(self) -> Generator[memoryview, None, None]:
        message = bytearray(handshake.CHALLENGE_BYTES)
        yield memoryview(message)
        handshake.check_challenge(message)
        said = bytes(message) + handshake.hello(self._secret, handshake.CONNECTING, bytes(message), self._own)
        self._say(said[len(message) :])
        answer = bytearray(handshake.HELLO_BYTES)
        yield memoryview(answer)
        theirs = handshake.read_hello(self._secret, handshake.LISTENING, said, bytes(answer))
        self._seal(handshake.keys(self._secret, said + answer))
        refusal = self._meet(theirs)
        if refusal:
            raise self._refuse(refusal)
        start, bells = self._plan(theirs)
        memory, made = self.link.accept_memory(start + segment_nbytes(self._shapes), bells)
        self._register(memory, start, made)
        yield from self._frames(theirs)

    def _plan(self, theirs: Hello) -> tuple[int, int]:
        """Where in the memory the slots begin, behind the rings if there are any, and the number of bells."""
        if not (self.link.shares_memory and self._own.rings and theirs.rings):
            return 0, 0
        return rings_nbytes(self._shapes.slots), _BELLS

    def _register(self, memory: mmap.mmap, start: int, bells: list[int]) -> None:
        self.slots = Slots(self._shapes, memory, start)
        if start:
            address, (first, second) = self.slots.address - start, bells
            self.rings = Rings(memory, address, self._shapes.slots, (first, second), listening=self.listening)

    def _seal(self, keys: Keys) -> None:
        self._key_out, self._key_in = keys.connecting, keys.listening
        if self.listening:
            self._key_out, self._key_in = self._key_in, self._key_out

    def _meet(self, theirs: Hello) -> str | None:
        own = self._own
        if theirs.role is own.role:
            return f"two {own.role.name.lower()} instances have nothing to say to each other"
        asked, allowed = theirs.shapes, own.shapes
        if own.role is Role.ATTENTION:
            asked, allowed = allowed, asked
        for name in ("hidden", "layers", "experts", "top_k"):
            if getattr(asked, name) != getattr(allowed, name):
                return (
                    f"they serve different models: the attention side has {name} {getattr(asked, name)}, "
                    f"the FFN side {getattr(allowed, name)}"
                )
        for name in ("max_tokens", "slots"):
            if getattr(asked, name) > getattr(allowed, name):
                return (
                    f"the attention side asks for {name} {getattr(asked, name):,}, the FFN side allows "
                    f"{getattr(allowed, name):,}"
                )
        self._shapes = asked
        return None

    def _refuse(self, reason: str | None) -> WireError:
        text = (reason or "refused").encode()[: frames.MAX_TEXT_BYTES]
        self.send(Header(Kind.GOODBYE, epoch=self._own.epoch, payload_bytes=len(text)), memoryview(text))
        return WireError(f"refused: {reason}")

    def _frames(self, theirs: Hello) -> Generator[memoryview, None, None]:
        peer = Peer(theirs.role, theirs.instance, theirs.epoch, self.link.address, self._shapes.slots)
        refusal = self._owner.admit(self, peer)
        if refusal:
            raise self._refuse(refusal)
        self.peer = peer
        head = bytearray(frames.HEADER_BYTES)
        serial = 0
        while True:
            yield memoryview(head)
            header = frames.unpack(head, self._key_in)
            if header.serial != serial:
                raise FrameError(f"frame {header.serial} came where frame {serial} was due")
            serial += 1
            if header.epoch != theirs.epoch:
                raise FrameError(f"a frame is of epoch {header.epoch}, its connection of {theirs.epoch}")
            frames.check(header, self._shapes)
            self._owner.expect(self, header)
            text = ""
            if header.kind in (Kind.ERROR, Kind.GOODBYE):
                message = bytearray(header.payload_bytes)
                if message:
                    yield memoryview(message)
                    _compare(header, memoryview(message))
                text = message.decode(errors="replace")
            elif header.payload_bytes and not self.link.shares_memory:
                area = self._area(header)
                yield area
                _compare(header, area)
            self._whole = True
            self._owner.deliver(self, header, text)

    def _area(self, header: Header) -> memoryview:
        slots = self.slots
        if slots is None:  # closed meanwhile, by the owner's thread
            return memoryview(b"")
        area = slots.call_bytes if header.kind is Kind.CALL else slots.answer_bytes
        return area(header.slot, header.payload_bytes)


def _compare(header: Header, payload: memoryview) -> None:
    if header.checksum and frames.checksum(payload) != header.checksum:
        raise FrameError(f"the payload of a {header.kind.name.lower()} frame is damaged")

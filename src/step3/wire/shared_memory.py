"""Shared memory between processes of a host: frames go over a Unix socket, payloads stay in a segment.

The segment is a memfd: it has no name, its descriptor goes to the peer over the socket, and the kernel frees
it when both processes have let go of it, however they ended. The socket's name is abstract, so it leaves no
file. The segment's size is sealed: neither side can cut it under the other.
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import re
import socket
import struct
from collections.abc import Sequence

from step3.wire.errors import FrameError, WireError

SCHEME = "shm://"

_NAME = re.compile(r"[A-Za-z0-9._-]{1,80}")
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MOST_DESCRIPTORS = 3
"""The segment, and a bell of each side."""
_CREDENTIALS = struct.Struct("3i")


class SharedMemoryLink:
    """A Unix socket, and the segment that came or goes over it."""

    shares_memory = True

    def __init__(self, sock: socket.socket, address: str, takes_segment: bool) -> None:
        sock.setblocking(False)
        self._sock, self.address = sock, address
        self._takes_segment = takes_segment
        self._taken: list[int] = []
        self._giving: list[int] = []

    def fileno(self) -> int:
        return self._sock.fileno()

    def recv_into(self, buffer: memoryview) -> int:
        if not self._takes_segment:
            return self._sock.recv_into(buffer)
        space = socket.CMSG_SPACE(4 * _MOST_DESCRIPTORS)
        size, control, _, _ = self._sock.recvmsg_into([buffer], space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._keep(array.array("i", data[: len(data) - len(data) % 4]))
        return size

    def buffered(self) -> bool:
        return False

    def send(self, parts: Sequence[memoryview]) -> int:
        if not self._giving:
            return self._sock.sendmsg(parts)
        rights = array.array("i", self._giving)
        size = self._sock.sendmsg(parts, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        self._close_giving()
        return size

    def offer_memory(self, nbytes: int, bells: int) -> tuple[mmap.mmap, list[int]]:
        segment = os.memfd_create("step3-wire", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._giving.append(segment)
        os.ftruncate(segment, nbytes)
        fcntl.fcntl(segment, fcntl.F_ADD_SEALS, _SEALS)
        made = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(bells)]
        self._giving += map(os.dup, made)
        return mmap.mmap(segment, nbytes), made

    def accept_memory(self, nbytes: int, bells: int) -> tuple[mmap.mmap, list[int]]:
        taken, self._taken, self._takes_segment = self._taken, [], False
        try:
            if len(taken) != 1 + bells:
                raise FrameError(f"the peer gave {len(taken)} descriptors, not a segment and {bells} bells")
            segment = taken.pop(0)
            try:
                seals, size = fcntl.fcntl(segment, fcntl.F_GET_SEALS), os.fstat(segment).st_size
                if seals & _SEALS != _SEALS or size != nbytes:
                    raise FrameError("the peer's segment has another size, or one that it could change")
                memory = mmap.mmap(segment, nbytes)
            finally:
                os.close(segment)
            made, taken = taken, []
            return memory, made
        except OSError as error:
            raise FrameError(f"the peer's segment cannot be used: {error}") from None
        finally:
            for one in taken:
                os.close(one)

    def close(self) -> None:
        self._sock.close()
        self._close_giving()
        while self._taken:
            os.close(self._taken.pop())

    def _keep(self, descriptors: array.array[int]) -> None:
        for one in descriptors:
            if len(self._taken) < _MOST_DESCRIPTORS:
                self._taken.append(one)
            else:
                os.close(one)

    def _close_giving(self) -> None:
        while self._giving:
            os.close(self._giving.pop())


class SharedMemoryListener:
    """Takes connections of processes of this host that run as the same user or as root."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.bind(_abstract(address))
        except OSError as error:
            self._sock.close()
            raise WireError(f"cannot listen at {address}: {error.strerror or error}") from None
        self._sock.listen(128)
        self._sock.setblocking(False)

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self) -> SharedMemoryLink:
        sock, _ = self._sock.accept()
        pid, uid, _ = _CREDENTIALS.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        if uid not in (0, os.geteuid()):
            sock.close()
            raise PermissionError(f"process {pid} of user {uid} may not connect to {self.address}")
        return SharedMemoryLink(sock, f"{self.address} (process {pid})", takes_segment=False)

    def close(self) -> None:
        self._sock.close()


def dial(address: str) -> SharedMemoryLink:
    """Connects to `shm://name`.

    Raises:
        WireError: the address cannot be read.
        OSError: nobody listens there.
    """
    name = _abstract(address)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(name)
    except OSError:
        sock.close()
        raise
    return SharedMemoryLink(sock, address, takes_segment=True)


def _abstract(address: str) -> bytes:
    name = address.removeprefix(SCHEME)
    if not address.startswith(SCHEME) or not _NAME.fullmatch(name):
        raise WireError(
            f"{address!r} is no address; write shm://name, with letters, digits, '.', '_' and '-'"
        )
    return b"\0step3/" + name.encode()

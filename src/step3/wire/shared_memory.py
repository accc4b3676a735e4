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
from step3.wire.formats import Shapes
from step3.wire.slots import segment_nbytes

SCHEME = "shm://"

_NAME = re.compile(r"[A-Za-z0-9._-]{1,80}")
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_CREDENTIALS = struct.Struct("3i")


class SharedMemoryLink:
    """A Unix socket, and the segment that came or goes over it."""

    shares_memory = True

    def __init__(self, sock: socket.socket, address: str, takes_segment: bool) -> None:
        sock.setblocking(False)
        self._sock, self.address = sock, address
        self._takes_segment = takes_segment
        self._segment: int | None = None
        self._giving: list[int] = []

    def fileno(self) -> int:
        return self._sock.fileno()

    def recv_into(self, buffer: memoryview) -> int:
        if not self._takes_segment:
            return self._sock.recv_into(buffer)
        size, control, _, _ = self._sock.recvmsg_into([buffer], socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
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

    def offer_memory(self, shapes: Shapes) -> mmap.mmap:
        size = segment_nbytes(shapes)
        segment = os.memfd_create("step3-wire", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._giving.append(segment)
        os.ftruncate(segment, size)
        fcntl.fcntl(segment, fcntl.F_ADD_SEALS, _SEALS)
        return mmap.mmap(segment, size)

    def accept_memory(self, shapes: Shapes) -> mmap.mmap:
        segment, self._segment, self._takes_segment = self._segment, None, False
        if segment is None:
            raise FrameError("the peer gave no segment")
        size = segment_nbytes(shapes)
        try:
            if (
                fcntl.fcntl(segment, fcntl.F_GET_SEALS) & _SEALS != _SEALS
                or os.fstat(segment).st_size != size
            ):
                raise FrameError("the peer's segment has another size, or one that it could change")
            return mmap.mmap(segment, size)
        except OSError as error:
            raise FrameError(f"the peer's segment cannot be used: {error}") from None
        finally:
            os.close(segment)

    def close(self) -> None:
        self._sock.close()
        self._close_giving()
        if self._segment is not None:
            os.close(self._segment)
            self._segment = None

    def _keep(self, segments: array.array[int]) -> None:
        for segment in segments:
            if self._segment is None:
                self._segment = segment
            else:
                os.close(segment)

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

"""TCP between hosts: payloads travel on the stream, each side keeps the slots in memory of its own."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import ssl
import struct
import threading
from collections.abc import Sequence

from step3.wire.errors import WireError
from step3.wire.slots import private_memory

SCHEME = "tcp://"

_LONG = 1 << 14
_PATIENCE = struct.pack("@ll", 0, 5000)  # 5 ms, a struct timeval


class TcpLink:
    """A TCP connection.

    A long buffer is a payload that is on its way: to wait for it in the kernel, up to `_PATIENCE`, costs a
    third less than to be woken for each piece of it.
    """

    shares_memory = False

    def __init__(self, sock: socket.socket, address: str) -> None:
        sock.setblocking(True)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _PATIENCE)
        self._sock, self.address = sock, address

    def fileno(self) -> int:
        return self._sock.fileno()

    def recv_into(self, buffer: memoryview) -> int:
        return self._sock.recv_into(buffer, 0, 0 if len(buffer) >= _LONG else socket.MSG_DONTWAIT)

    def buffered(self) -> bool:
        return False

    def send(self, parts: Sequence[memoryview]) -> int:
        return self._sock.sendmsg(parts, (), 0 if len(parts[-1]) >= _LONG else socket.MSG_DONTWAIT)

    def offer_memory(self, nbytes: int, bells: int) -> tuple[mmap.mmap, list[int]]:
        return private_memory(nbytes), []

    def accept_memory(self, nbytes: int, bells: int) -> tuple[mmap.mmap, list[int]]:
        return private_memory(nbytes), []

    def close(self) -> None:
        self._sock.close()


class TlsLink(TcpLink):
    """A TCP connection inside TLS, whose handshake begins with the first send or receive after TCP's."""

    def __init__(
        self, sock: socket.socket, address: str, context: ssl.SSLContext, server_name: str | None
    ) -> None:
        super().__init__(sock, address)
        sock.setblocking(False)
        self._context, self._server_name = context, server_name
        self._tls: ssl.SSLSocket | None = None
        self._lock = threading.Lock()  # one TLS session may not be read and written at once

    def recv_into(self, buffer: memoryview) -> int:
        with self._lock:
            try:
                return self._session().recv_into(buffer)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise BlockingIOError from None

    def send(self, parts: Sequence[memoryview]) -> int:
        with self._lock:
            try:
                return self._session().send(parts[0])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise BlockingIOError from None

    def buffered(self) -> bool:
        return self._tls is not None and self._tls.pending() > 0

    def _session(self) -> ssl.SSLSocket:
        if self._tls is None:
            code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            try:
                self._sock.getpeername()
            except OSError:
                raise BlockingIOError from None
            self._tls = self._context.wrap_socket(
                self._sock,
                server_side=self._server_name is None,
                server_hostname=self._server_name,
                do_handshake_on_connect=False,
            )
            self._sock = self._tls
        return self._tls


class TcpListener:
    """Takes TCP connections; `tls` wraps each."""

    def __init__(self, address: str, tls: ssl.SSLContext | None = None) -> None:
        host, port = split(address)
        try:
            self._sock = socket.create_server((host, port), family=_family(host), backlog=128)
        except OSError as error:
            raise WireError(f"cannot listen at {address}: {error.strerror or error}") from None
        self._sock.setblocking(False)
        self._tls = tls
        self.address = SCHEME + join(*self._sock.getsockname()[:2])

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self) -> TcpLink:
        sock, peer = self._sock.accept()
        address = SCHEME + join(*peer[:2])
        return TcpLink(sock, address) if self._tls is None else TlsLink(sock, address, self._tls, None)

    def close(self) -> None:
        self._sock.close()


def dial(address: str, tls: ssl.SSLContext | None = None) -> TcpLink:
    """Begins a connection to `tcp://host:port`; that it failed is told by the first read.

    Raises:
        WireError: the address cannot be read.
        OSError: the host has no address, or there is no way to it.
    """
    host, port = split(address)
    family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, protocol)
    sock.setblocking(False)
    code = sock.connect_ex(target)
    if code not in (0, errno.EINPROGRESS):
        sock.close()
        raise OSError(code, os.strerror(code))
    return TcpLink(sock, address) if tls is None else TlsLink(sock, address, tls, host)


def split(address: str) -> tuple[str, int]:
    """`tcp://host:port` in its parts; an IPv6 host stands in brackets.

    Raises:
        WireError: it has another form.
    """
    host, colon, port = address.removeprefix(SCHEME).rpartition(":")
    if not address.startswith(SCHEME) or not colon or not port.isdecimal() or int(port) > 65535:
        raise WireError(f"{address!r} is no address; write tcp://host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def join(host: str, port: int) -> str:
    """host:port, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET

"""From an address to its transport; a further transport is one more scheme here."""

from __future__ import annotations

import ssl

from step3.wire import shared_memory, tcp
from step3.wire.errors import WireError
from step3.wire.link import Link, Listener


def listen(address: str, tls: ssl.SSLContext | None = None) -> Listener:
    """Listens at `tcp://host:port` (port 0: any free one) or `shm://name`; `tls` is for TCP alone.

    Raises:
        WireError: the address cannot be read or used.
    """
    if address.startswith(tcp.SCHEME):
        return tcp.TcpListener(address, tls)
    if address.startswith(shared_memory.SCHEME):
        return shared_memory.SharedMemoryListener(address)
    raise _unknown(address)


def dial(address: str, tls: ssl.SSLContext | None = None) -> Link:
    """Begins a connection to an address at which an endpoint listens.

    Raises:
        WireError: the address cannot be read.
        OSError: nobody can be there.
    """
    if address.startswith(tcp.SCHEME):
        return tcp.dial(address, tls)
    if address.startswith(shared_memory.SCHEME):
        return shared_memory.dial(address)
    raise _unknown(address)


def _unknown(address: str) -> WireError:
    return WireError(f"{address!r} is no address; write tcp://host:port, or shm://name within a host")

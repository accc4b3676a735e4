"""Where pictures in messages come from: data in the request, and hosts that the server's owner has named.

A picture's URL comes from outside, so that fetching it must not reach anything else than it says. Only https
is spoken, only to hosts that are named, and only to public addresses. The address is chosen here, checked,
and then connected to as it is; no name is looked up a second time, so that it cannot have become another one
in between. A redirect is a new URL with all checks.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import http.client
import io
import ipaddress
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urljoin

from step3.server.errors import RequestFault

MAX_URL_CHARACTERS = 2048
MAX_HEAD_BYTES = 32 << 10
MAX_ADDRESSES = 3
"""Of a host, that are tried."""
MAX_TOGETHER = 16
"""Pictures that are fetched at the same time, of all requests."""

Resolve = Callable[[str], Awaitable[list[str]]]
"""From a host's name to its addresses."""
Connect = Callable[[str, str], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
"""From an address, and the name that the other side must prove to have, to a connection."""

_HOST = re.compile(r"(?!-)[a-z0-9-]{1,63}(?:\.(?!-)[a-z0-9-]{1,63})*")
_URL = re.compile(r"https://([^/?#]*)([^#]*)(?:#.*)?", re.IGNORECASE)
_UNSAFE = re.compile(r"[^!-~]|[\\<>\"^`{|}]")
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class FetchLimits:
    """What fetching pictures may reach and cost.

    Attributes:
        hosts: names that pictures may come from, `*.example.org` for all below; none turns fetching off.
        max_bytes: of one picture's file.
        seconds: for one picture, redirects included.
        max_redirects: that are followed for one.
    """

    hosts: tuple[str, ...] = ()
    max_bytes: int = 20 << 20
    seconds: float = 10.0
    max_redirects: int = 3


class FetchError(Exception):
    """A picture that is not fetched, and why; names no address."""


class PictureSource:
    """Gives pictures' files, whichever kind of URL they are behind."""

    def __init__(
        self, limits: FetchLimits, resolve: Resolve | None = None, connect: Connect | None = None
    ) -> None:
        """
        Args:
            resolve, connect: how names are looked up and connections made; the system's where left out.
        """
        self._limits = limits
        self._resolve, self._connect = resolve or _resolve, connect or _connect
        self._together = asyncio.Semaphore(MAX_TOGETHER)

    async def read(self, url: str, param: str) -> bytes:
        """The file behind `data:image/png;base64,...`, `data:image;base64,...` or `https://host/...`.

        Raises:
            RequestFault: the URL is of another kind, its base64 is broken, or it is not fetched; `param` is
                the field that is at fault.
        """
        if url[:5].lower() == "data:":
            return _from_base64(url, param)
        if not self._limits.hosts:
            raise RequestFault(
                400,
                f"{param}: this server fetches no pictures; send them as data:image/png;base64,... (or start "
                "it with --allowed-media-domains)",
                param,
            )
        try:
            async with self._together:
                return await asyncio.wait_for(self._fetch(url), self._limits.seconds)
        except asyncio.TimeoutError:
            message = f"{param}: the picture did not come within {self._limits.seconds:g} s"
        except FetchError as error:
            message = f"{param}: {error}"
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, EOFError):
            # What the other side or the network did is not for clients: it could tell of the inside.
            message = f"{param}: the picture could not be fetched"
        raise RequestFault(400, message, param)

    async def _fetch(self, url: str) -> bytes:
        for _ in range(self._limits.max_redirects + 1):
            host, target = self._parse(url)
            addresses = await self._resolve(host)
            if not addresses:
                raise FetchError("the picture's host has no address")
            if not all(map(is_public, addresses)):
                raise FetchError("the picture's host is not on the public internet")
            async with self._connected(addresses, host) as (reader, writer):
                writer.write(_request(host, target))
                status, headers = await _read_head(reader)
                if status == 200:
                    return await _read_body(reader, headers, self._limits.max_bytes)
                if status not in _REDIRECTS or "location" not in headers:
                    raise FetchError(f"the picture's host answered with status {status}")
                url = urljoin(f"https://{host}{target}", headers["location"])
        raise FetchError(f"the picture is behind more than {self._limits.max_redirects} redirects")

    def _parse(self, url: str) -> tuple[str, str]:
        """The host and what is asked of it.

        Raises:
            FetchError: the URL is not https on the usual port, is not written plainly, or is of another host.
        """
        found = _URL.fullmatch(url)
        if found is None:
            raise FetchError("a picture's URL must begin with https:// (or be data:image/png;base64,...)")
        if len(url) > MAX_URL_CHARACTERS or _UNSAFE.search(url):
            raise FetchError("a picture's URL holds characters that must be escaped, or is too long")
        host = found[1].lower().removesuffix(":443").removesuffix(".")
        if not _HOST.fullmatch(host) or _is_number(host.rpartition(".")[2]):
            raise FetchError(
                "a picture's URL must name a host: no user, port or address in numbers is allowed"
            )
        if not any(_matches(host, allowed) for allowed in self._limits.hosts):
            raise FetchError("pictures from this host are not allowed here (--allowed-media-domains)")
        target = found[2] or "/"
        return host, target if target.startswith("/") else f"/{target}"

    @asynccontextmanager
    async def _connected(
        self, addresses: list[str], host: str
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection to the first of the addresses that takes one."""
        *others, last = addresses[:MAX_ADDRESSES]
        for address in others:
            with suppress(OSError):
                reader, writer = await self._connect(address, host)
                break
        else:
            reader, writer = await self._connect(last, host)
        try:
            peer = writer.get_extra_info("peername")
            if peer is None or not is_public(str(peer[0])):
                raise FetchError("the picture's host is not on the public internet")
            yield reader, writer
        finally:
            writer.transport.abort()


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet's: no loopback, private, link-local, multicast or
    reserved one, and none that stands for such an IPv4 address in an IPv6 form."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = _inner_ipv4(ip)
        if inner is not None:
            return is_public(str(inner))
        # 2000::/3 is all that is handed out.
        if ip not in ipaddress.ip_network("2000::/3"):
            return False
    # 192.0.0.0/24 is for protocols; releases of Python differ on parts of it.
    elif ip in ipaddress.ip_network("192.0.0.0/24"):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _inner_ipv4(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a mapped, 6to4, Teredo or NAT64 address leads to."""
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip.sixtofour is not None:
        return ip.sixtofour
    if ip.teredo is not None:
        return ip.teredo[1]
    if ip in ipaddress.ip_network("64:ff9b::/96"):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return None


def _matches(host: str, allowed: str) -> bool:
    allowed = allowed.lower().removesuffix(".")
    return host.endswith(allowed[1:]) if allowed.startswith("*.") else host == allowed


def _is_number(label: str) -> bool:
    """Whether a host's last label makes it an address: decimal, or hexadecimal after 0x."""
    return label.isdecimal() or re.fullmatch(r"0x[0-9a-f]*", label) is not None


def _request(host: str, target: str) -> bytes:
    lines = [f"GET {target} HTTP/1.1", f"Host: {host}", "User-Agent: step3", "Accept: image/*"]
    return "\r\n".join([*lines, "Accept-Encoding: identity", "Connection: close", "", ""]).encode("ascii")


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, http.client.HTTPMessage]:
    status_line = await reader.readline()
    found = re.match(rb"HTTP/1\.[01] (\d{3})[ \r\n]", status_line)
    if found is None:
        raise FetchError("the picture's host does not speak HTTP")
    head = bytearray()
    while True:
        line = await reader.readline()
        head += line
        if len(head) > MAX_HEAD_BYTES:
            raise FetchError("the picture's host answers with too many headers")
        if line in (b"\r\n", b"\n", b""):
            break
    try:
        return int(found[1]), http.client.parse_headers(io.BytesIO(bytes(head)))
    except http.client.HTTPException:
        raise FetchError("the picture's host does not speak HTTP") from None


async def _read_body(reader: asyncio.StreamReader, headers: http.client.HTTPMessage, max_bytes: int) -> bytes:
    if headers.get("content-encoding", "identity") != "identity":
        raise FetchError("the picture's host sends a compressed answer")
    too_large = FetchError(f"the picture is over {max_bytes:,} bytes")
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise too_large
    body = bytearray()
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := _chunk_size(await reader.readline()):
            if len(body) + size > max_bytes:
                raise too_large
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        return bytes(body)
    if declared.isdecimal():
        return await reader.readexactly(int(declared))
    while piece := await reader.read(1 << 16):
        body += piece
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", digits):
        raise FetchError("the picture's host does not speak HTTP")
    return int(digits, 16)


def _from_base64(url: str, param: str) -> bytes:
    header, comma, text = url.partition(",")
    kind, *rest = header[5:].lower().split(";")
    if not comma or rest[-1:] != ["base64"] or kind.partition("/")[0] != "image":
        raise RequestFault(400, f"{param}: a picture must look like data:image/png;base64,...", param)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestFault(400, f"{param}: the picture's base64 is broken or cut off", param) from None


async def _resolve(host: str) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


async def _connect(address: str, host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.create_default_context()
    return await asyncio.open_connection(address, 443, ssl=context, server_hostname=host)

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

import pytest

from step3.server.errors import RequestFault
from step3.server.pictures import FetchLimits, PictureSource, is_public

DATA = base64.b64encode(b"picture").decode()
PUBLIC = "93.184.215.14"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\npicture"


class Internet:
    """Names with addresses, and what the hosts answer; a request that is made is noted.

    Attributes:
        asked: address and name of each connection, and the first line of what was sent.
    """

    def __init__(
        self, answers: Sequence[bytes] = (OK,), addresses: Sequence[str] = (PUBLIC,), peer: str | None = None
    ) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self._answers, self._addresses, self._peer = list(answers), list(addresses), peer
        self.is_slow = False

    async def resolve(self, host: str) -> list[str]:
        return self._addresses

    async def connect(self, address: str, host: str) -> tuple[Any, Any]:
        reader = asyncio.StreamReader()
        if not self.is_slow:
            reader.feed_data(self._answers.pop(0))
            reader.feed_eof()
        return reader, _Writer(self, address, host, self._peer or address)

    def read(self, url: str, **limits: Any) -> bytes:
        async def run() -> bytes:
            fetch = FetchLimits(**{"hosts": ("example.org", "*.pictures.net"), **limits})
            return await PictureSource(fetch, self.resolve, self.connect).read(url, "messages[0]")

        return asyncio.run(run())

    def refuses(self, url: str, said: str, **limits: Any) -> None:
        with pytest.raises(RequestFault, match=said) as caught:
            self.read(url, **limits)
        assert (caught.value.status_code, caught.value.param) == (400, "messages[0]")


class _Writer:
    def __init__(self, internet: Internet, address: str, host: str, peer: str) -> None:
        self._internet, self._address, self._host, self._peer = internet, address, host, peer
        self.transport = self

    def write(self, data: bytes) -> None:
        self._internet.asked.append((self._address, self._host, data.decode().splitlines()[0]))

    def get_extra_info(self, name: str) -> Any:
        return (self._peer, 443)

    def abort(self) -> None:
        return None


@pytest.mark.parametrize(
    "header",
    [
        "data:image/png;base64,",
        "data:image;base64,",
        "data:image/jpeg;name=a.jpg;base64,",
        "DATA:image/x;base64,",
    ],
)
def test_data_urls_are_decoded(header: str) -> None:
    assert Internet().read(header + DATA, hosts=()) == b"picture"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://example.org/a.png", "fetches no pictures"),
        ("http://127.0.0.1/a.png", "fetches no pictures"),
        ("file:///etc/passwd", "fetches no pictures"),
        ("/etc/passwd", "fetches no pictures"),
        ("", "fetches no pictures"),
        ("data:text/html;base64," + DATA, "must look like"),
        ("data:image/png," + DATA, "must look like"),
        ("data:image/png;base64", "must look like"),
        ("data:image/png;base64," + DATA[:-3], "broken or cut off"),
        ("data:image/png;base64,*" + DATA, "broken or cut off"),
        ("data:image/png;base64,ü", "broken or cut off"),
    ],
)
def test_without_hosts_anything_else_is_refused_with_the_field(url: str, said: str) -> None:
    internet = Internet()
    internet.refuses(url, said, hosts=())
    assert not internet.asked


@pytest.mark.parametrize(
    ("url", "host", "line"),
    [
        ("https://example.org/a.png", "example.org", "GET /a.png HTTP/1.1"),
        ("HTTPS://EXAMPLE.org:443/a.png?x=1#y", "example.org", "GET /a.png?x=1 HTTP/1.1"),
        ("https://example.org.", "example.org", "GET / HTTP/1.1"),
        ("https://a.pictures.net?b", "a.pictures.net", "GET /?b HTTP/1.1"),
    ],
)
def test_a_picture_comes_from_a_host_that_is_named(url: str, host: str, line: str) -> None:
    internet = Internet()
    assert internet.read(url) == b"picture"
    assert internet.asked == [(PUBLIC, host, line)]


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.png",
        "ftp://example.org/a.png",
        "file:///etc/passwd",
        "//example.org/a.png",
        "https:/example.org/a.png",
        "https:example.org",
        " https://example.org/a.png",
        "https://",
        "https:///a.png",
        "https://other.org/a.png",
        "https://example.org.evil.net/a.png",
        "https://evilexample.org/a.png",
        "https://pictures.net/a.png",
        "https://evilpictures.net/a.png",
        "https://user@example.org/a.png",
        "https://example.org@evil.net/a.png",
        "https://evil.net\\@example.org/a.png",
        "https://example.org\\@evil.net/a.png",
        "https://example.org\\.evil.net/a.png",
        "https://example.org:8443/a.png",
        "https://example.org:443:443/a.png",
        "https://127.0.0.1/a.png",
        "https://2130706433/a.png",
        "https://0x7f000001/a.png",
        "https://0x7f.1/a.png",
        "https://0177.0.0.1/a.png",
        "https://127.1/a.png",
        "https://[::1]/a.png",
        "https://[::ffff:127.0.0.1]/a.png",
        "https://localhost/a.png",
        "https://example.org%00.evil.net/a.png",
        "https://example%2eorg/a.png",
        "https://ｅxample.org/a.png",
        "https://example。org/a.png",
        "https://example.org/a b.png",
        "https://example.org/\r\nHost: evil.net",
        "https://example.org/\ta.png",
        "https://example.org/ä.png",
        "https://example.org/" + "a" * 3000,
    ],
)
def test_urls_that_lead_elsewhere_or_are_not_plain_are_refused(url: str) -> None:
    internet = Internet()
    internet.refuses(url, "picture")
    assert not internet.asked


def test_numbers_are_no_hosts_even_where_they_are_named() -> None:
    for host in ("127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1"):
        internet = Internet()
        internet.refuses(f"https://{host}/", "must name a host", hosts=(host,))
        assert not internet.asked


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.168.1.1",
        "192.0.0.8",
        "198.18.0.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2002:a00:1::",
        "2001:0:5ef5:79fd:0:0:80ff:fffe",
        "2001:db8::1",
        "fc00::1",
        "fd12::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "nonsense",
        "",
        "127.1",
    ],
)
def test_addresses_that_are_not_public_are_not_connected_to(address: str) -> None:
    assert not is_public(address)
    internet = Internet(addresses=[address])
    internet.refuses("https://example.org/a.png", "not on the public internet")
    # One bad address among good ones is enough: which one is connected to is nobody's to choose.
    Internet(addresses=[PUBLIC, address]).refuses("https://example.org/a.png", "not on the public internet")
    assert not internet.asked


@pytest.mark.parametrize(
    "address", [PUBLIC, "1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_public_addresses_are(address: str) -> None:
    assert is_public(address)


def test_the_address_that_was_connected_to_is_what_counts() -> None:
    internet = Internet(peer="127.0.0.1")
    internet.refuses("https://example.org/a.png", "not on the public internet")
    assert not internet.asked


def test_the_next_address_is_tried_where_one_takes_no_connection() -> None:
    class HalfDown(Internet):
        async def connect(self, address: str, host: str) -> tuple[Any, Any]:
            if address != PUBLIC:
                raise OSError("no route")
            return await super().connect(address, host)

    assert HalfDown(addresses=["2606:4700:4700::1111", PUBLIC]).read("https://example.org/a") == b"picture"


def redirect(to: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {to}\r\n\r\n".encode()


def test_redirects_are_followed_to_where_they_may_lead() -> None:
    internet = Internet([redirect("/b"), redirect("https://x.pictures.net/c"), OK])
    assert internet.read("https://example.org/a") == b"picture"
    assert [(host, line.split()[1]) for _, host, line in internet.asked] == [
        ("example.org", "/a"),
        ("example.org", "/b"),
        ("x.pictures.net", "/c"),
    ]


@pytest.mark.parametrize(
    "to",
    [
        "http://example.org/",
        "https://evil.net/",
        "//evil.net/",
        "https://127.0.0.1/",
        "https://[::ffff:7f00:1]/",
        "file:///etc/passwd",
        "https://example.org\\@evil.net/",
        "data:image/png;base64,AAAA",
    ],
)
def test_redirects_that_lead_elsewhere_are_not(to: str) -> None:
    internet = Internet([redirect(to), OK])
    internet.refuses("https://example.org/a", "picture")
    assert len(internet.asked) == 1


def test_redirects_have_an_end() -> None:
    Internet([redirect("/a")] * 9).refuses("https://example.org/a", "more than 2 redirects", max_redirects=2)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "status 404"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\npicture", "over 100 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 101, "over 100 bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n70\r\n" + b"x" * 200, "over 100 bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\npicture", "could not be fetched"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\npicture", "compressed"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 10_000, "too many headers"),
        (b"HTTP/1.1 200 OK\r\na: " + b"b" * 100_000 + b"\r\n\r\n", "could not be fetched"),
        (b"SSH-2.0-OpenSSH\r\n", "does not speak HTTP"),
        (b"", "does not speak HTTP"),
    ],
)
def test_answers_that_are_too_large_or_none_are_refused(answer: bytes, said: str) -> None:
    Internet([answer]).refuses("https://example.org/a", said, max_bytes=100)


def test_answers_in_chunks_are_put_together() -> None:
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\npic\r\n4;x=y\r\nture\r\n0\r\n\r\n"
    assert Internet([chunks]).read("https://example.org/a") == b"picture"


def test_a_host_that_does_not_answer_is_left() -> None:
    internet = Internet()
    internet.is_slow = True
    internet.refuses("https://example.org/a", "did not come within", seconds=0.05)


def test_what_the_network_says_is_not_told() -> None:
    class Broken(Internet):
        async def resolve(self, host: str) -> list[str]:
            raise OSError("getaddrinfo failed at 10.0.0.53")

    with pytest.raises(RequestFault) as caught:
        Broken().read("https://example.org/a")
    assert "10.0.0" not in str(caught.value.detail)

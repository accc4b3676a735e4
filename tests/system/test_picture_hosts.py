"""Pictures by URL from a real TLS host, in a network namespace with a public address of its own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import PATIENCE

SYSTEM = Path(__file__).parent
PUBLIC = "93.184.215.14"
# Name: address. The host proves to be the first and the third; the second is not in its certificate.
NAMES = {
    "pictures.example.org": PUBLIC,
    "impostor.example.org": PUBLIC,
    "inside.example.org": "127.0.0.1",
}

HOST_AND_CLIENT = """
import http.server, io, json, ssl, sys, threading
sys.path.insert(0, {system!r})
from PIL import Image
from served import CHAT, HI, Server

file = io.BytesIO()
Image.new("RGB", (30, 20), (200, 30, 30)).save(file, "PNG")
PICTURE = file.getvalue()
asked = []

class Host(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append(self.headers["Host"] + self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", "https://" + self.path[4:])
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(PICTURE)))
        self.end_headers()
        self.wfile.write(PICTURE)

    def log_message(self, *_):
        pass

class Quiet(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        pass

host = Quiet(("0.0.0.0", 443), Host)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain({certificate!r}, {key!r})
host.socket = context.wrap_socket(host.socket, server_side=True, do_handshake_on_connect=False)
threading.Thread(target=host.serve_forever, daemon=True).start()

server = Server("--allowed-media-domains", "*.example.org")
try:
    for url in {urls!r}:
        content = [{{"type": "image_url", "image_url": {{"url": url}}}}, {{"type": "text", "text": "what?"}}]
        body = {{**HI, "messages": [{{"role": "user", "content": content}}], "max_tokens": 2}}
        response = server.http.post(CHAT, json=body)
        answer = response.json()
        told = answer["error"]["message"] if "error" in answer else "answered"
        print(json.dumps([response.status_code, told]), flush=True)
    print(json.dumps(asked))
finally:
    server.stop()
"""


@pytest.fixture
def internet() -> Iterator[str]:
    """The name of a network namespace with `PUBLIC` and `NAMES`."""
    name = f"step3-{os.getpid()}-web"
    names = Path("/etc/netns") / name
    try:
        subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
        for command in (["link", "set", "lo", "up"], ["addr", "add", f"{PUBLIC}/32", "dev", "lo"]):
            subprocess.run(["ip", "-n", name, *command], check=True, capture_output=True)
        names.mkdir(parents=True)
        (names / "hosts").write_text("".join(f"{address} {host}\n" for host, address in NAMES.items()))
        yield name
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces can be made here: {error}")
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
        shutil.rmtree(names, ignore_errors=True)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for two of the names, which is its own authority, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    files = tmp_path / "host.pem", tmp_path / "host.key"
    command = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-subj", "/CN=pictures", "-days", "2", "-out", str(files[0]), "-keyout", str(files[1])]
    command += ["-addext", "subjectAltName=DNS:pictures.example.org,DNS:inside.example.org"]
    subprocess.run(command, check=True, capture_output=True)
    return files


def test_only_pictures_of_public_hosts_that_prove_their_name_are_fetched(
    internet: str, certificate: tuple[Path, Path]
) -> None:
    expected = {
        "https://pictures.example.org/red.png": (200, "answered"),
        "https://pictures.example.org/to/pictures.example.org/red.png": (200, "answered"),
        "https://impostor.example.org/red.png": (400, "could not be fetched"),
        "https://inside.example.org/red.png": (400, "not on the public internet"),
        "https://pictures.example.org/to/inside.example.org/": (400, "not on the public internet"),
        "https://pictures.example.org/to/elsewhere.example.com/": (400, "not allowed here"),
    }
    pem, key = map(str, certificate)
    program = HOST_AND_CLIENT.format(system=str(SYSTEM), certificate=pem, key=key, urls=list(expected))
    done = subprocess.run(
        ["ip", "netns", "exec", internet, sys.executable, "-c", program],
        env={**os.environ, "SSL_CERT_FILE": pem},
        stdout=subprocess.PIPE,
        text=True,
        timeout=2 * PATIENCE,
        check=True,
    )
    *answers, asked = map(json.loads, done.stdout.splitlines())
    for (status, told), (url, (right_status, said)) in zip(answers, expected.items(), strict=True):
        assert status == right_status, (url, told)
        assert said in told, url
    assert asked == [
        "pictures.example.org/red.png",
        "pictures.example.org/to/pictures.example.org/red.png",
        "pictures.example.org/red.png",
        "pictures.example.org/to/inside.example.org/",
        "pictures.example.org/to/elsewhere.example.com/",
    ]


def test_a_certificate_of_an_unknown_authority_is_no_proof(
    internet: str, certificate: tuple[Path, Path]
) -> None:
    pem, key = map(str, certificate)
    urls = ["https://pictures.example.org/red.png"]
    program = HOST_AND_CLIENT.format(system=str(SYSTEM), certificate=pem, key=key, urls=urls)
    command = ["ip", "netns", "exec", internet, sys.executable, "-c", program]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=2 * PATIENCE, check=True)
    (status, told), asked = map(json.loads, done.stdout.splitlines())
    assert status == 400
    assert "could not be fetched" in told
    assert asked == []

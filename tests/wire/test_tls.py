"""TLS around TCP: the same calls, and nobody without it."""

import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
import torch
from wire_world import World, activations

from step3.wire import Gone, Unreachable


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of a server with a certificate for `localhost`, and of a client that trusts it."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder: Path = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(command, check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=str(certificate))


@pytest.fixture
def world():
    made = World("tcp")
    yield made
    made.close()


def test_calls_and_answers_pass(world: World, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    server, client = contexts
    ffn, where = world.add_ffn(tls=server)
    attention = world.add_attention(where.replace("127.0.0.1", "localhost"), tls=client)
    world.until(lambda: attention.peers and ffn.peers)
    for number in range(5):
        attention.push(attention.peers, 0, 1, activations(16, number))
        ffn.reply(world.group(number + 1), activations(16, number) + 1)
        answer = world.answers(attention, number + 1)[number]
        assert torch.equal(answer.partial, activations(16, number) + 1)
        answer.release()
    world.ffn.remove(ffn)
    ffn.close()
    world.until(lambda: world.told(attention, Gone))


def test_a_certificate_that_is_not_trusted_is_told(
    world: World, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    ffn, where = world.add_ffn(tls=contexts[0])
    attention = world.add_attention(where.replace("127.0.0.1", "localhost"), tls=ssl.create_default_context())
    world.until(lambda: world.told(attention, Unreachable))
    assert "certificate" in world.told(attention, Unreachable)[0].reason.lower()
    assert not ffn.peers


def test_who_speaks_no_tls_is_dropped(
    world: World, contexts: tuple[ssl.SSLContext, ssl.SSLContext], caplog: pytest.LogCaptureFixture
) -> None:
    _, where = world.add_ffn(tls=contexts[0])
    host, port = where.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))) as stranger:
        stranger.send(b"GET / HTTP/1.1\r\n\r\n" * 20)
        world.until(lambda: "dropped the connection" in caplog.text)

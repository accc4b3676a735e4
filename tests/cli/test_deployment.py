"""`step3 topology` and `step3 trace` against a server that says what it is told to."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from step3.cli.deployment import read_instance
from step3.cli.main import app
from step3.errors import Step3Error

FOUND: dict[str, Any] = {
    "topology": "1A2F:ep2",
    "address": "10.0.0.1:7000",
    "attention": [
        {
            "instance": 0,
            "state": "ready",
            "device": "cpu",
            "pid": 41,
            "running": 3,
            "waiting": 1,
            "kv_cache_usage": 0.25,
            "lanes": [{"steps": 2, "tokens": 8}, {"steps": 2, "tokens": 8}],
        }
    ],
    "ffn": [
        {
            "instance": 1,
            "state": "draining",
            "device": None,
            "pid": 42,
            "shard": 1,
            "calls": 2000,
            "products": 900,
        }
    ],
    "restarts": {"ffn": 2},
    "moved_requests": 5,
    "limit": "attention limits the pipeline",
}
TRACE = {"traceEvents": [{"ph": "M"}, {"ph": "X"}, {"ph": "X"}]}


class Server:
    """Keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str | None, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *_: object) -> None: ...

            def _answer(self, body: Any) -> None:
                server.asked.append((self.command, self.path, self.headers["Authorization"], body))
                status, answer = 200, FOUND if body is None else {"done": "ffn 0 leaves"}
                if "trace" in self.path:
                    answer = TRACE
                if self.headers["Authorization"] == "Bearer wrong":
                    status, answer = 401, {"error": {"message": "the key is not right"}}
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def run(self, command: str, *flags: str) -> str:
        result = CliRunner().invoke(app, [command, "--url", self.url, *flags], env={"COLUMNS": "140"})
        if isinstance(result.exception, Step3Error):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_a_topology_is_shown_with_what_limits_it(server: Server) -> None:
    printed = server.run("topology")
    for said in ("1A2F:ep2 at 10.0.0.1:7000", "3 answers, 1 wait, KV 25%, 2 lanes of 4.0 tokens"):
        assert said in printed
    for said in ("shard 1, 2,000 calls in 900 products", "replaced: 2 ffn", "elsewhere: 5", FOUND["limit"]):
        assert said in printed


def test_json_is_what_the_server_said(server: Server) -> None:
    assert json.loads(server.run("topology", "--json")) == FOUND


@pytest.mark.parametrize(
    ("flags", "body"),
    [
        (("--drain", "ffn:0"), {"action": "drain", "role": "ffn", "number": 0}),
        (("--add", "attention"), {"action": "add", "role": "attention", "number": 0}),
        (("--add", "ffn:1"), {"action": "add", "role": "ffn", "number": 1}),
    ],
)
def test_a_change_is_asked_for_and_told(server: Server, flags: tuple[str, ...], body: dict[str, Any]) -> None:
    assert "ffn 0 leaves" in server.run("topology", *flags, "--api-key", "right")
    assert server.asked == [("POST", "/cluster", "Bearer right", body)]


def test_a_trace_is_written(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "trace.json"
    assert "2 spans" in server.run("trace", "--out", str(out), "--seconds", "0.5")
    assert json.loads(out.read_text()) == TRACE
    assert server.asked[0][1] == "/cluster/trace?seconds=0.5"


def test_a_trace_that_cannot_be_written_is_an_error(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Step3Error, match="cannot be written"):
        server.run("trace", "--out", str(tmp_path / "nowhere" / "trace.json"))


def test_what_the_server_objects_to_is_said(server: Server) -> None:
    with pytest.raises(Step3Error, match="the key is not right"):
        server.run("topology", "--api-key", "wrong")


@pytest.mark.parametrize(
    ("url", "said"), [("ftp://host", "must be a server's"), ("http://127.0.0.1:1", "does not answer")]
)
def test_a_server_that_is_not_there_is_an_error(url: str, said: str) -> None:
    result = CliRunner().invoke(app, ["topology", "--url", url])
    assert isinstance(result.exception, Step3Error)
    assert said in str(result.exception)


@pytest.mark.parametrize("text", ["gpu:0", "ffn:x", "ffn:-1", "", "attention"])
def test_an_instance_that_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(Step3Error, match="is written like"):
        read_instance(text, needs_number=True)

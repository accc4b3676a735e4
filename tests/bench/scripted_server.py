"""A server that speaks OpenAI's API from a script."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], Any]


class ScriptedServer(ThreadingHTTPServer):
    """Answers with what `answer(body)` gives: a list of deltas that are streamed, or (status, message).

    An exception in a list breaks the connection off there; an Event is waited for.

    Attributes:
        asked: the bodies that came.
    """

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.asked = answer, list[dict[str, Any]]()
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def log_message(self, *_: Any) -> None:
        return None

    def do_GET(self) -> None:
        self._json(200, {"data": [{"id": "scripted"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(body)
        self.server.keys.append(self.headers["authorization"])
        script = self.server.answer(body)
        if isinstance(script, tuple):
            self._json(script[0], {"error": {"message": script[1]}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for item in script:
                if isinstance(item, threading.Event):
                    item.wait(60)
                    continue
                if isinstance(item, Exception):
                    self.close_connection = True
                    return
                self._chunk(
                    b"data: " + (item if isinstance(item, bytes) else json.dumps(item).encode()) + b"\n\n"
                )
            self._chunk(b"")
        except OSError:
            # The client went away.
            self.close_connection = True

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _json(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(answer: Answer) -> Iterator[ScriptedServer]:
    server = ScriptedServer(answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def chunk(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def usage(prompt: int, output: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": output}}


DONE = b"[DONE]"


def words(text: str, prompt: int = 7) -> list[Any]:
    """A whole answer: a role, then a piece for each word."""
    pieces = text.split(" ")
    return [
        chunk(role="assistant", content=""),
        *(chunk(content=f"{piece} ") for piece in pieces),
        usage(prompt, len(pieces)),
        DONE,
    ]

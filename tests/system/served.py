"""A server as users start it, with the golden model that sees."""

import base64
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

MODEL = Path(__file__).parents[1] / "data" / "golden" / "vl"
CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0}
PATIENCE = 120
"""Seconds after which something that should happen did not."""


class Server:
    """`step3 serve` in a process of its own."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-c", "from step3.cli.serve import serve; import typer; typer.run(serve)"]
        flags = ["--model-path", str(MODEL), "--port", "0", "--dtype", "float32", "--max-model-len", "2048"]
        flags += [
            "--served-model-name",
            "golden",
            "--trust-remote-code",
            "--max-pixels",
            "100000",
            "--tp",
            "1",
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        self.process = subprocess.Popen(
            [*command, *flags, *options], stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stderr is not None
        self.said = ""
        for line in self.process.stderr:
            self.said += line
            found = re.search(r"http://127\.0\.0\.1:\d+", self.said)
            if found and "stops" in line:
                self.http = httpx.Client(base_url=found[0], timeout=PATIENCE)
                return
        raise AssertionError(f"the server did not start: {self.said}")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(PATIENCE)

    def chat(self, **change: Any) -> dict[str, Any]:
        response = self.http.post(CHAT, json={**HI, **change})
        assert response.status_code == 200, response.text
        return response.json()

    def pids(self) -> list[int]:
        """The HTTP process and the engine's."""
        own = self.process.pid
        return [own, *map(int, Path(f"/proc/{own}/task/{own}/children").read_text().split())]

    def resident_kib(self) -> int:
        """Memory of both processes."""
        statuses = [Path(f"/proc/{pid}/status").read_text() for pid in self.pids()]
        return sum(int(found[1]) for one in statuses if (found := re.search(r"VmRSS:\s+(\d+) kB", one)))

    def metric(self, name: str) -> float:
        found = re.search(rf"^step3_{name} (.+)$", self.http.get("/metrics").text, re.MULTILINE)
        assert found, name
        return float(found[1])

    def aborted(self) -> float:
        counts = re.findall(r'finished_reason="abort".*} (.+)$', self.http.get("/metrics").text, re.MULTILINE)
        return sum(map(float, counts))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def picture(width: int, height: int, header: str = "data:image/png;base64,") -> list[dict[str, Any]]:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(file, "PNG")
    url = header + base64.b64encode(file.getvalue()).decode()
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]

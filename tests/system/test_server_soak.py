"""Many clients at once, some of whom hang up; `--soak SECONDS` goes on for longer."""

import asyncio
import importlib.util
import sys
from pathlib import Path

from served import Server

SOAK = Path(__file__).parents[2] / "benchmarks" / "server_soak.py"


def test_answers_are_right_while_others_hang_up(soak_seconds: float) -> None:
    spec = importlib.util.spec_from_file_location("server_soak", SOAK)
    assert spec is not None
    assert spec.loader is not None
    soak = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(soak)
    server = Server("--max-waiting", "256")
    try:
        url, pids = str(server.http.base_url), server.pids()
        assert asyncio.run(soak.soak(url, 256, max(4.0, soak_seconds), 30, pids)) == []
    finally:
        server.stop()

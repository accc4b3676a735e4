"""Many streaming clients on the bundled model, some of whom hang up at random: is every other answer right?

    python benchmarks/server_soak.py --seconds 300

Each client sends requests one after the other. A request's answer is a function of the request alone (greedy,
or drawn with a seed), so that every answer that came whole must equal that of the same request alone. At the
end the KV cache must be empty, and memory as it was half-way.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

CHAT = "/v1/chat/completions"
QUESTIONS = ("What is 2 + 3?", "Name a colour.", "Hello!", "What can you do?", "Tell me a story.", "Why?")
MEMORY_GROWTH = 1.05


@dataclass
class Tally:
    """What came of the requests.

    Attributes:
        answers: the texts of those that came whole, by request.
        ended: how requests ended: "whole", "left" or what went wrong.
    """

    answers: dict[int, set[str]] = field(default_factory=dict)
    ended: Counter[str] = field(default_factory=Counter)


def request(number: int) -> dict[str, Any]:
    """One of the requests, the same for the same number."""
    rng = random.Random(number)
    body = {
        "messages": [{"role": "user", "content": f"{rng.choice(QUESTIONS)} ({number})"}],
        "max_tokens": rng.choice((8, 24, 64)),
        "temperature": rng.choice((0, 1)),
        "seed": number,
        "stream": True,
    }
    if rng.random() < 0.2:
        body["thinking_token_budget"] = rng.randrange(8)
    return body


async def read(lines: Any, most: int | None = None) -> str | None:
    """The text of a stream; None where it is left after `most` chunks, or ends without its end."""
    text, chunks = "", 0
    async for line in lines:
        if line == "data: [DONE]":
            return text
        if not line.startswith("data: "):
            continue
        chunk = json.loads(line[6:])
        if "error" in chunk:
            raise RuntimeError(chunk["error"]["message"])
        for choice in chunk["choices"]:
            delta = choice["delta"]
            text += (delta.get("reasoning_content") or "") + "|" + (delta.get("content") or "")
        chunks += 1
        if most is not None and chunks >= most:
            return None
    raise RuntimeError("the stream ended without its end")


async def client(http: httpx.AsyncClient, number: int, end: float, distinct: int, tally: Tally) -> None:
    """Asks until the time is over; one request in three is left in the middle."""
    rng = random.Random(number)
    while time.monotonic() < end:
        which, leaves = rng.randrange(distinct), rng.random() < 1 / 3
        try:
            async with http.stream("POST", CHAT, json=request(which)) as response:
                if response.status_code != 200:
                    tally.ended[f"status {response.status_code}"] += 1
                    continue
                text = await read(response.aiter_lines(), rng.randrange(1, 9) if leaves else None)
        except (httpx.HTTPError, RuntimeError) as error:
            tally.ended[repr(error)] += 1
            continue
        tally.ended["left" if text is None else "whole"] += 1
        if text is not None:
            tally.answers.setdefault(which, set()).add(text.replace("|", ""))


async def soak(url: str, clients: int, seconds: float, distinct: int, pids: list[int]) -> list[str]:
    """Runs the load and gives what is wrong, nothing at best."""
    tally, end = Tally(), time.monotonic() + seconds
    # Connections are not reused: those that are hung up on could not be.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as http:
        work = [client(http, number, end, distinct, tally) for number in range(clients)]
        load = asyncio.gather(*work)
        # Until the caches have seen every request once, memory may grow.
        memory = []
        for _ in range(3):
            await asyncio.sleep(seconds / 4)
            memory.append(resident_mib(pids))
            print(f"{dict(tally.ended)}, {sum(memory[-1]):.0f} MiB", flush=True)
        await load
        faults = [f"{what}: {count}" for what, count in tally.ended.items() if what not in ("whole", "left")]
        deadline = time.monotonic() + 30
        while await metric(http, "num_requests_running") and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        memory.append(resident_mib(pids))
        used = await metric(http, "kv_cache_usage_perc")
        for which, answers in tally.answers.items():
            async with http.stream("POST", CHAT, json=request(which)) as response:
                alone = (await read(response.aiter_lines()) or "").replace("|", "")
            if answers != {alone}:
                faults.append(f"request {which}: {len(answers)} answers, alone {alone!r}, found {answers}")
    print(
        f"{clients} clients, {seconds:g} s: {dict(tally.ended)}, {len(tally.answers)} different requests; "
        f"memory after each quarter, HTTP + engine: "
        f"{', '.join(f'{http:.0f} + {engine:.0f} MiB' for http, engine in memory)}; KV use {used:g}"
    )
    if used:
        faults.append(f"{used:.1%} of the KV cache is still in use")
    if sum(memory[-1]) > MEMORY_GROWTH * sum(memory[1]):
        faults.append("memory grew in the second half")
    if not tally.ended["whole"] or not tally.ended["left"]:
        faults.append("nothing was tried")
    return faults


async def metric(http: httpx.AsyncClient, name: str) -> float:
    found = re.search(rf"^step3_{name} (.+)$", (await http.get("/metrics")).text, re.MULTILINE)
    assert found, name
    return float(found[1])


def resident_mib(pids: list[int]) -> list[float]:
    """Memory of each process."""
    statuses = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return [int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024 for status in statuses]


def main(
    checkpoint: Annotated[str | None, typer.Argument(help="Left out, the bundled model.")] = None,
    clients: int = 256,
    seconds: float = 300.0,
    distinct: Annotated[int, typer.Option(help="Different requests.")] = 200,
) -> None:
    """Start a server, load it, and exit 1 where anything is wrong."""
    command = [sys.executable, "-c", "from step3.cli import main; main()", "serve"]
    flags = ["--port", "0", "--max-model-len", "512", "--max-waiting", str(clients)]
    command += [*([checkpoint] if checkpoint else []), *flags]
    environment = {**os.environ, "COLUMNS": "200"}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert server.stderr is not None
    url = None
    for line in server.stderr:
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        url = found[0] if found else url
        if url and "stops" in line:
            break
    said: list[str] = []
    # Also so that the server never waits for somebody to read.
    threading.Thread(target=lambda: said.extend(server.stderr or ()), daemon=True).start()
    try:
        assert url is not None, "the server did not start"
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        faults = asyncio.run(soak(url, clients, seconds, distinct, [server.pid, *map(int, children)]))
        if said:
            faults.append(f"the server said {len(said)} lines, the first: {said[0].rstrip()}")
    finally:
        server.terminate()
        server.wait(60)
    for fault in faults:
        print(fault)
    raise typer.Exit(1 if faults else 0)


if __name__ == "__main__":
    typer.run(main)

"""What serving costs: streamed completions over HTTP, ours beside vLLM's server in the same run.

    python benchmarks/server.py tests/data/golden/text --peer ~/.cache/step3-peer

The client shares the machine's cores with the servers. It sends prompts of token ids, streams, and counts the
tokens that the servers report. For ours the parts are shown too: the processor time that each process takes
for a token, and what the engine alone, the tokenizer, one server-sent event and one empty HTTP request take.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.request import urlopen

import typer
from processes import children, processor_seconds
from rich.console import Console
from rich.table import Table

GOAL = 3.0
START_GOAL_SECONDS = 5.0
START_LIMIT_SECONDS = 200.0


@dataclass(frozen=True)
class Load:
    """What the clients ask for.

    Attributes:
        concurrency: requests under way at any time.
        requests: in all.
        prompt, new: tokens of each.
    """

    concurrency: int
    requests: int
    prompt: int
    new: int


@dataclass(frozen=True)
class Speed:
    """What came of it: tokens a second in all, and medians in milliseconds."""

    concurrency: int
    tokens_per_second: float
    ttft_ms: float
    tpot_ms: float
    server_us_per_token: float = 0.0
    engine_us_per_token: float = 0.0
    client_us_per_token: float = 0.0


class Exchange(asyncio.Protocol):
    """One connection that answers are read from, with as little work as can be."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[float, float, int]] | None = None
        self._started = self._first = 0.0
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def ask(self, request: bytes) -> tuple[float, float, int]:
        """Seconds to the first token and to the last, and the number of tokens."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._started, self._first, self._tail = time.perf_counter(), 0.0, b""
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        if not self._first and b"data: " in data:
            self._first = time.perf_counter()
        self._tail = (self._tail + data)[-2000:]
        if self._tail.endswith(b"0\r\n\r\n") and self._answer is not None and not self._answer.done():
            found = re.search(rb'"completion_tokens": ?(\d+)', self._tail)
            if found is None:
                self._answer.set_exception(RuntimeError(f"no usage in {self._tail[-500:]!r}"))
                return
            now = time.perf_counter()
            self._answer.set_result((self._first - self._started, now - self._started, int(found[1])))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(RuntimeError(f"connection lost: {self._tail[-500:]!r}"))


async def offer(port: int, load: Load, vocabulary: int) -> list[tuple[float, float, int]]:
    """Sends the load, `concurrency` requests at a time, and gives what `Exchange.ask` gave for each."""
    loop, rng = asyncio.get_running_loop(), random.Random(load.concurrency)
    prompts = [[rng.randrange(20, vocabulary) for _ in range(load.prompt)] for _ in range(load.requests)]
    requests = iter([completion(port, prompt, load.new) for prompt in prompts])
    answers: list[tuple[float, float, int]] = []

    async def client() -> None:
        transport, exchange = await loop.create_connection(Exchange, "127.0.0.1", port)
        for request in requests:
            answers.append(await exchange.ask(request))
        transport.close()

    await asyncio.gather(*(client() for _ in range(load.concurrency)))
    return answers


def completion(port: int, prompt: list[int], new: int) -> bytes:
    """The request for exactly `new` tokens behind `prompt`, streamed."""
    body = {
        "model": "golden",
        "prompt": prompt,
        "max_tokens": new,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data


@dataclass
class Served:
    """A server that runs: where, its processes (HTTP first), and how long it took to answer."""

    port: int
    pids: list[int]
    start_seconds: float


@contextmanager
def serving(command: list[str], environment: dict[str, str], port: int, log: Path) -> Iterator[Served]:
    """Starts a server and waits until it is healthy; stops it at the end."""
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        while not _is_healthy(port):
            if process.poll() is not None or time.perf_counter() - started > START_LIMIT_SECONDS:
                raise typer.BadParameter(f"the server did not start: {log.read_text()[-2000:]}")
            time.sleep(0.02)
        yield Served(port, [process.pid, *children(process.pid)], time.perf_counter() - started)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_healthy(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as response:
            return response.status == 200
    except OSError:
        return False


def measure(served: Served, load: Load, vocabulary: int) -> Speed:
    """The load's speed, after a short one to warm up."""
    warm_up = Load(load.concurrency, min(load.requests, 2 * load.concurrency), load.prompt, load.new)
    asyncio.run(offer(served.port, warm_up, vocabulary))
    before = [processor_seconds(pid) for pid in served.pids[:2]]
    own = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    started = time.perf_counter()
    answers = asyncio.run(offer(served.port, load, vocabulary))
    seconds = time.perf_counter() - started
    own = sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - own
    used = [processor_seconds(pid) - then for pid, then in zip(served.pids[:2], before, strict=True)]
    tokens = sum(count for _, _, count in answers)
    if tokens != load.requests * load.new:
        raise RuntimeError(f"{tokens} tokens came, {load.requests * load.new} were asked for")
    return Speed(
        load.concurrency,
        tokens / seconds,
        1e3 * statistics.median(first for first, _, _ in answers),
        1e3 * statistics.median((last - first) / (count - 1) for first, last, count in answers),
        *(1e6 * one / tokens for one in (*used, own)),
    )


async def engine_alone(checkpoint: Path, load: Load, vocabulary: int) -> float:
    """Tokens a second of the engine in this process, without HTTP and without text."""
    from step3 import SamplingParams
    from step3.engine.async_llm import AsyncLLM
    from step3.engine.sampling.params import RequestOutputKind

    engine = AsyncLLM(str(checkpoint), dtype="bfloat16", max_model_len=2048)
    params = SamplingParams(
        temperature=0, max_tokens=load.new, ignore_eos=True, output_kind=RequestOutputKind.DELTA
    )
    rng = random.Random(load.concurrency)

    async def answer() -> None:
        ids = [rng.randrange(20, vocabulary) for _ in range(load.prompt)]
        async for _ in engine.generate(ids, params):
            pass

    waiting = iter(range(load.requests))

    async def client() -> None:
        for _ in waiting:
            await answer()

    await answer()
    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(load.concurrency)))
    seconds = time.perf_counter() - started
    engine.shutdown()
    return load.requests * load.new / seconds


def parts(checkpoint: Path, load: Load, port: int) -> dict[str, float]:
    """Microseconds: of the tokenizer for a prompt, of one event, and of one empty request over HTTP."""
    from transformers import AutoTokenizer

    from step3.server.streams import event

    tokenizer = AutoTokenizer.from_pretrained(str(checkpoint))
    text = tokenizer.decode(range(20, 20 + load.prompt))
    chunk = {"index": 0, "text": "word", "logprobs": None, "finish_reason": None}
    head = {"id": "cmpl-" + "0" * 32, "object": "text_completion", "created": 1700000000, "model": "golden"}
    return {
        "tokenizer: a prompt": _microseconds(lambda: tokenizer.encode(text)),
        "SSE: an event": _microseconds(lambda: event({**head, "choices": [chunk]})),
        "HTTP: an empty request": 1e6 * _http_seconds(port),
    }


def _microseconds(work: Any, times: int = 2000) -> float:
    work()
    started = time.perf_counter()
    for _ in range(times):
        work()
    return 1e6 * (time.perf_counter() - started) / times


def _http_seconds(port: int, times: int = 1000) -> float:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        started = time.perf_counter()
        for _ in range(times):
            connection.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            data = b""
            while not data.endswith(b"}"):
                data += connection.recv(4096)
        return (time.perf_counter() - started) / times


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def own_server(checkpoint: Path, port: int, length: int = 2048) -> list[str]:
    """The command that serves `checkpoint`, for sequences of up to `length` tokens."""
    command = [sys.executable, "-c", "from step3.cli import main; main()", "serve", str(checkpoint)]
    return command + _flags(port, length)


def peer_server(
    peer: Path, checkpoint: Path, port: int, length: int = 2048, dtype: str = "bfloat16"
) -> list[str]:
    """The same of vLLM, in the environment at `peer`."""
    return [str(peer / "bin" / "vllm"), "serve", str(checkpoint), *_flags(port, length, dtype)]


def _flags(port: int, length: int, dtype: str = "bfloat16") -> list[str]:
    names = ["--dtype", dtype, "--served-model-name", "golden"]
    return ["--port", str(port), "--max-model-len", str(length), "--max-num-seqs", "64", *names]


def peer_environment() -> dict[str, str]:
    """What vLLM is told by its environment: all cores, and memory for keys and values."""
    cores = os.cpu_count() or 1
    bind = {"VLLM_CPU_OMP_THREADS_BIND": f"0-{cores - 1}", "OMP_NUM_THREADS": str(cores)}
    return {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2", **bind}


def main(
    checkpoint: Annotated[Path, typer.Argument(help="A small checkpoint: serving is to be seen, not it.")],
    peer: Annotated[Path | None, typer.Option(help="Environment with vLLM; left out, only ours.")] = None,
    concurrency: Annotated[str, typer.Option(help="Requests at a time, with commas between.")] = "1,16,64",
    seconds: Annotated[float, typer.Option(help="Roughly for each of ours.")] = 6.0,
    prompt: int = 32,
    new: int = 64,
    out: Annotated[Path | None, typer.Option(help="JSON of all figures.")] = None,
) -> None:
    """Measure, print a table, and exit 1 where a goal is missed."""
    checkpoint = checkpoint.resolve()
    vocabulary = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    loads = [
        Load(one, max(3 * one, round(seconds * rate / new)), prompt, new)
        for one, rate in zip(map(int, concurrency.split(",")), (400, 4000, 6000), strict=False)
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    console, folder = Console(), Path(tempfile.mkdtemp())
    with serving(
        own_server(checkpoint, port := free_port()), environment, port, folder / "step3.log"
    ) as served:
        start, ours = served.start_seconds, [measure(served, load, vocabulary) for load in loads]
        apart = parts(checkpoint, loads[0], port)
    alone = [asyncio.run(engine_alone(checkpoint, load, vocabulary)) for load in loads]
    theirs: list[Speed] = []
    their_start = 0.0
    if peer is not None:
        command = peer_server(peer.expanduser(), checkpoint, port := free_port())
        fewer = [Load(one.concurrency, max(one.concurrency, one.requests // 3), prompt, new) for one in loads]
        with serving(command, peer_environment(), port, folder / "vllm.log") as served:
            their_start = served.start_seconds
            theirs = [measure(served, load, vocabulary) for load in fewer]
    _show(console, ours, alone, theirs)
    console.print(
        f"up in {start:.1f} s" + (f", vLLM in {their_start:.1f} s" if theirs else ""),
        *(f"\n{name}: {value:.0f} µs" for name, value in apart.items()),
    )
    if out is not None:
        figures = {"ours": [*map(asdict, ours)], "engine_alone": alone, "theirs": [*map(asdict, theirs)]}
        starts = {"start_seconds": start, "their_start_seconds": their_start, "microseconds": apart}
        out.write_text(json.dumps({**figures, **starts}, indent=2))
    is_fast = all(
        own.tokens_per_second >= GOAL * other.tokens_per_second
        for own, other in zip(ours, theirs, strict=False)
    )
    raise typer.Exit(0 if is_fast and start < START_GOAL_SECONDS else 1)


def _show(console: Console, ours: list[Speed], alone: list[float], theirs: list[Speed]) -> None:
    table = Table("concurrency", "tokens/s", "engine alone", "vLLM", "ratio", "TTFT ms", "TPOT ms")
    for name in ("HTTP process", "engine process", "client"):
        table.add_column(f"{name} µs/token", justify="right")
    for number, own in enumerate(ours):
        other = theirs[number] if theirs else None
        speeds = [own.tokens_per_second, alone[number]]
        table.add_row(
            str(own.concurrency),
            *(f"{speed:,.0f}" for speed in speeds),
            f"{other.tokens_per_second:,.0f}" if other else "",
            f"{own.tokens_per_second / other.tokens_per_second:.1f}" if other else "",
            f"{own.ttft_ms:.1f}" + (f" ({other.ttft_ms:.1f})" if other else ""),
            f"{own.tpot_ms:.2f}" + (f" ({other.tpot_ms:.2f})" if other else ""),
            *(
                f"{one:.0f}"
                for one in (own.server_us_per_token, own.engine_us_per_token, own.client_us_per_token)
            ),
        )
    console.print(table)


if __name__ == "__main__":
    typer.run(main)

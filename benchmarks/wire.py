"""What a call costs on the wire: codec, shared memory beside memcpy, TCP beside gloo and ZeroMQ.

    python benchmarks/wire.py                       # needs pyzmq for the comparison with ZeroMQ
    python benchmarks/wire.py --tokens 2048 --rounds 200

One attention and one FFN endpoint, each a process with one thread, call and answer in turn. Activations go
out as fp8 that is already encoded, partial sums come back as bfloat16, so the times are the transport's; the
codec's are shown apart. A hop is from before the call (the answer) is copied to its slot until the other
side has it. The bar for shared memory is 1.5 times the two copies into the shared slots, made by two
processes that take turns as the endpoints do; for TCP it is the better of gloo and ZeroMQ, which carry the
same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import multiprocessing
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.table import Table

from step3.wire import (
    Answer,
    AttentionEndpoint,
    FFNEndpoint,
    Format,
    Fp8,
    Gone,
    Shapes,
    call_layout,
    decode_fp8,
    encode_fp8,
)
from step3.wire.formats import DEFAULT_SPIN

TOP_K, EXPERTS, LAYERS = 3, 48, 61


@dataclass(frozen=True)
class Job:
    """What every transport carries.

    Attributes:
        spin: seconds for which an endpoint looks again before it sleeps.
    """

    tokens: int
    hidden: int
    rounds: int
    warm: int
    spin: float = DEFAULT_SPIN
    checksums: bool = False

    @property
    def shapes(self) -> Shapes:
        return Shapes(self.hidden, self.tokens, LAYERS, EXPERTS, TOP_K, slots=4)

    @property
    def call_bytes(self) -> int:
        return call_layout(Format.FP8, self.tokens, self.hidden, TOP_K).nbytes

    @property
    def answer_bytes(self) -> int:
        return 2 * self.tokens * self.hidden


Times = dict[str, list[float]]
"""Microseconds of each hop, a value a round."""

SPAWN = multiprocessing.get_context("spawn")


def measure_codec(job: Job) -> Times:
    """Encoding and decoding by torch operations, one thread."""
    x = torch.randn(job.tokens, job.hidden)
    values = torch.empty(job.tokens, job.hidden, dtype=torch.float8_e4m3fn)
    scales = torch.empty(job.tokens, -(-job.hidden // 128))
    narrow, out, narrow_out = x.bfloat16(), torch.empty_like(x), x.bfloat16()
    return {
        "encode float32 as fp8": _timed(lambda: encode_fp8(x, values, scales), 50),
        "encode bfloat16 as fp8": _timed(lambda: encode_fp8(narrow, values, scales), 50),
        "decode fp8 to float32": _timed(lambda: decode_fp8(values, scales, out), 50),
        "decode fp8 to bfloat16": _timed(lambda: decode_fp8(values, scales, narrow_out), 50),
    }


def measure_copies(job: Job) -> Times:
    """The two copies: again and again in one process, and by two processes that take turns."""
    call, answer = np.zeros(job.call_bytes, np.uint8), np.zeros(job.answer_bytes, np.uint8)
    to_call, to_answer = np.empty_like(call), np.empty_like(answer)
    alone = _timed(lambda: np.copyto(to_call, call), 500)
    alone_back = _timed(lambda: np.copyto(to_answer, answer), 500)
    size = mmap.PAGESIZE + len(call) + len(answer)
    segment = os.memfd_create("benchmark")
    os.ftruncate(segment, size)
    memory = mmap.mmap(segment, size)
    child = SPAWN.Process(target=_copy_in_turn, args=(os.getpid(), segment, job))
    child.start()
    turn = np.frombuffer(memory, np.int64, 2)
    slot = np.frombuffer(memory, np.uint8, len(call), mmap.PAGESIZE)
    out, back, both = [], [], []
    for _ in range(job.rounds):
        start = time.perf_counter()
        np.copyto(slot, call)
        copied = time.perf_counter()
        turn[0] = 1
        while turn[0] == 1:
            os.sched_yield()
        both.append(1e6 * (time.perf_counter() - start))
        out.append(1e6 * (copied - start))
        back.append(1e-3 * float(turn[1]))
    turn[0] = 2
    child.join()
    os.close(segment)
    sums = [a + b for a, b in zip(out, back, strict=True)]
    return {
        "one process": [a + b for a, b in zip(alone, alone_back, strict=True)],
        "two processes in turn": sums[job.warm :],
        "the same with handing over": both[job.warm :],
    }


def _copy_in_turn(owner: int, segment: int, job: Job) -> None:
    fileno = os.open(f"/proc/{owner}/fd/{segment}", os.O_RDWR)
    memory = mmap.mmap(fileno, mmap.PAGESIZE + job.call_bytes + job.answer_bytes)
    turn = np.frombuffer(memory, np.int64, 2)
    answer = np.zeros(job.answer_bytes, np.uint8)
    slot = np.frombuffer(memory, np.uint8, job.answer_bytes, mmap.PAGESIZE + job.call_bytes)
    while turn[0] != 2:
        if turn[0] == 1:
            start = time.perf_counter_ns()
            np.copyto(slot, answer)
            turn[1] = time.perf_counter_ns() - start
            turn[0] = 0
        os.sched_yield()


def measure_wire(job: Job, address: str) -> Times:
    """Round trips between an attention and an FFN endpoint."""
    secret = secrets.token_bytes(32)
    here, there = SPAWN.Pipe()
    child = SPAWN.Process(target=_serve, args=(job, address, secret, there))
    child.start()
    x = torch.randn(job.tokens, job.hidden)
    values = torch.empty(job.tokens, job.hidden, dtype=torch.float8_e4m3fn)
    scales = torch.empty(job.tokens, -(-job.hidden // 128))
    encode_fp8(x, values, scales)
    encoded = Fp8(values, scales)
    ids, weights = torch.randint(EXPERTS, (job.tokens, TOP_K)), torch.rand(job.tokens, TOP_K)
    times: Times = {"round trip": [], "out": [], "waiting": [], "FFN": [], "back": []}
    with AttentionEndpoint(0, job.shapes, secret, spin=job.spin, checksums=job.checksums) as endpoint:
        endpoint.connect(here.recv())
        peers = endpoint.wait_for_peers(1, 30.0)
        for _ in range(job.rounds):
            start = time.perf_counter()
            endpoint.push(peers, 0, 5, encoded, ids, weights)
            answer = None
            while answer is None:
                answer = next((one for one in endpoint.wait(10.0) if isinstance(one, Answer)), None)
            times["round trip"].append(1e6 * (time.perf_counter() - start))
            stamps = answer.times
            answer.release()
            times["out"].append(1e-3 * (stamps.arrived_ns - stamps.pushed_ns))
            times["waiting"].append(1e-3 * (stamps.started_ns - stamps.arrived_ns))
            times["FFN"].append(1e-3 * (stamps.finished_ns - stamps.started_ns))
            times["back"].append(1e-3 * (stamps.answered_ns - stamps.finished_ns))
    child.join()
    return {name: values[job.warm :] for name, values in times.items()}


def _serve(job: Job, address: str, secret: bytes, owner: Connection) -> None:
    torch.set_num_threads(1)
    partial = torch.randn(job.tokens, job.hidden).bfloat16()
    with FFNEndpoint(0, job.shapes, secret, spin=job.spin, checksums=job.checksums) as endpoint:
        owner.send(endpoint.listen(address))
        while True:
            group = endpoint.serve(10.0)
            if any(isinstance(event, Gone) for event in endpoint.events()):
                return
            if group is not None:
                endpoint.reply(group, partial)


def measure_gloo(job: Job) -> Times:
    """torch.distributed's send and recv."""
    port = _free_port()
    child = SPAWN.Process(target=_gloo, args=(job, port, 1))
    child.start()
    times = _gloo(job, port, 0)
    child.join()
    return {"round trip": times[job.warm :]}


def _gloo(job: Job, port: int, rank: int) -> list[float]:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    call = torch.zeros(job.call_bytes, dtype=torch.uint8)
    answer = torch.zeros(job.answer_bytes, dtype=torch.uint8)
    times = []
    for _ in range(job.rounds):
        start = time.perf_counter()
        if rank == 0:
            dist.send(call, 1)
            dist.recv(answer, 1)
        else:
            dist.recv(call, 0)
            dist.send(answer, 0)
        times.append(1e6 * (time.perf_counter() - start))
    dist.destroy_process_group()
    return times


def measure_zeromq(job: Job, copy: bool) -> Times:
    """pyzmq over TCP, a PAIR of sockets; received as one message, which the receiver does not copy."""
    port = _free_port()
    child = SPAWN.Process(target=_zeromq, args=(job, port, 1, copy))
    child.start()
    times = _zeromq(job, port, 0, copy)
    child.join()
    return {"round trip": times[job.warm :]}


def _zeromq(job: Job, port: int, rank: int, copy: bool) -> list[float]:
    import zmq

    call, answer = bytes(job.call_bytes), bytes(job.answer_bytes)
    times = []
    with zmq.Context() as context, context.socket(zmq.PAIR) as pair:
        where = f"tcp://127.0.0.1:{port}"
        pair.bind(where) if rank == 0 else pair.connect(where)
        for _ in range(job.rounds):
            start = time.perf_counter()
            if rank == 0:
                pair.send(call, copy=copy)
                pair.recv(copy=copy)
            else:
                pair.recv(copy=copy)
                pair.send(answer, copy=copy)
            times.append(1e6 * (time.perf_counter() - start))
    return times


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def _timed(act: Callable[[], object], rounds: int) -> list[float]:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        act()
        times.append(1e6 * (time.perf_counter() - start))
    return times[rounds // 5 :]


def _row(times: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(times, [50, 99])
    return {"mean": float(np.mean(times)), "p50": float(p50), "p99": float(p99), "max": max(times)}


def main(
    tokens: Annotated[int, typer.Option(help="Tokens of a call.")] = 128,
    hidden: Annotated[int, typer.Option(help="Channels.")] = 7168,
    rounds: Annotated[int, typer.Option(help="Round trips of each transport.")] = 2000,
    spin: Annotated[float, typer.Option(help="Seconds an endpoint looks again before it sleeps.")] = 0.001,
    out: Annotated[Path | None, typer.Option(help="Write all figures as JSON, too.")] = None,
) -> None:
    """Measure the wire, and hold it against its bars."""
    torch.set_num_threads(1)
    job = Job(tokens, hidden, rounds, warm=rounds // 5)
    sleeping, spinning = dataclasses.replace(job, spin=0.0), dataclasses.replace(job, spin=spin)
    name = f"shm://benchmark-{os.getpid()}"
    parts: dict[str, Callable[[], Times]] = {
        "codec": lambda: measure_codec(job),
        "two copies": lambda: measure_copies(job),
        "shared memory": lambda: measure_wire(job, f"{name}-a"),
        "shared memory, sleeping": lambda: measure_wire(sleeping, f"{name}-b"),
        "shared memory, spinning": lambda: measure_wire(spinning, f"{name}-c"),
        "TCP": lambda: measure_wire(job, "tcp://127.0.0.1:0"),
        "TCP, sleeping": lambda: measure_wire(sleeping, "tcp://127.0.0.1:0"),
        "TCP, spinning": lambda: measure_wire(spinning, "tcp://127.0.0.1:0"),
        "TCP, with checksums": lambda: measure_wire(
            dataclasses.replace(job, checksums=True), "tcp://127.0.0.1:0"
        ),
        "gloo": lambda: measure_gloo(job),
    }
    try:
        import zmq

        parts["ZeroMQ"] = lambda: measure_zeromq(job, copy=True)
        parts["ZeroMQ, zero copy"] = lambda: measure_zeromq(job, copy=False)
        del zmq
    except ImportError:
        print("no pyzmq: ZeroMQ is left out")
    title = f"{tokens} × {hidden}, fp8 out, bfloat16 back, microseconds of {rounds} rounds"
    table = Table("", "hop", "mean", "p50", "p99", "max", title=title, title_justify="left")
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for part, measure in parts.items():
        figures[part] = {hop: _row(times) for hop, times in measure().items()}
        for hop, row in figures[part].items():
            table.add_row(part, hop, *(f"{value:.1f}" for value in row.values()))
        table.add_section()
    Console(width=110).print(table)
    copies = figures["two copies"]["two processes in turn"]["p50"]
    for name in (one for one in figures if one.startswith("shared memory")):
        ratio = figures[name]["round trip"]["p50"] / copies
        print(f"{name}: {ratio:.2f} times the two copies (bar 1.5)")
    others = [figures[one]["round trip"]["p50"] for one in figures if one.startswith(("gloo", "ZeroMQ"))]
    for name in (one for one in figures if one.startswith("TCP")):
        ratio = figures[name]["round trip"]["p50"] / min(others)
        print(f"{name}: {ratio:.2f} times the best of the others (bar 1)")
    if out is not None:
        out.write_text(json.dumps({"tokens": tokens, "hidden": hidden, "rounds": rounds, "us": figures}))


if __name__ == "__main__":
    typer.run(main)

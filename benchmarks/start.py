"""How long a start takes on the CPU, from the process to its first token, and what memory it needs.

    python benchmarks/start.py CHECKPOINT BLOCK_FP8_CHECKPOINT --peer PYTHON_OF_VLLM

Every start is a process of its own; they take turns, round after round. The files are in the page cache,
and memory is at hand: a host that takes free memory back from a virtual machine may need seconds to give it
again, whoever asks for it (`--no-memory-at-hand` leaves that in).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

WORKER = Path(__file__).with_name("start_worker.py")
PHASES = ("imported", "loaded", "answered")


def read_through(checkpoint: Path) -> int:
    """Brings a checkpoint's files into the page cache; their bytes."""
    total = 0
    for file in checkpoint.glob("*.safetensors"):
        with file.open("rb", buffering=0) as opened:
            buffer = bytearray(8 << 20)
            while count := opened.readinto(buffer):
                total += count
    return total


def touch(nbytes: int) -> None:
    """Has the host supply memory: a process takes it, and gives it back to this machine."""
    code = (
        "import mmap, sys\n"
        "memory = mmap.mmap(-1, int(sys.argv[1]), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "memory.madvise(mmap.MADV_HUGEPAGE)\n"
        "for at in range(0, len(memory), mmap.PAGESIZE): memory[at] = 1\n"
    )
    subprocess.run([sys.executable, "-c", code, str(nbytes)], check=True)


def start(command: list[str]) -> dict[str, float]:
    """Seconds of each phase, and bytes."""
    begin = time.time()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    told = json.loads(done.stdout)
    result = {"start": told["answered"] - begin, "peak": told["peak_bytes"]}
    result |= {"taken": told["anonymous_bytes"], "kv": told["kv_bytes"]}
    for phase in PHASES:
        result[phase], begin = told[phase] - begin, told[phase]
    return result


def main(
    checkpoints: Annotated[list[Path], typer.Argument(help="Text checkpoints, bf16 or block-fp8.")],
    peer: Annotated[
        Path | None, typer.Option(help="Python that has vLLM's CPU build, for the first.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Times that everything is started.")] = 3,
    memory_at_hand: Annotated[bool, typer.Option(help="Touch as much memory before each start.")] = True,
    out: Annotated[Path | None, typer.Option(help="Write what was measured as JSON.")] = None,
) -> None:
    """Measure starts, and print their medians."""
    runs: dict[tuple[str, str], tuple[Path, list[str]]] = {}
    for checkpoint in checkpoints:
        for load in ("packed", "mmap"):
            command = [sys.executable, str(WORKER), "step3", str(checkpoint), load]
            runs[checkpoint.name, f"step3 {load}"] = checkpoint, command
    if peer is not None:
        command = [str(peer), str(WORKER), "vllm", str(checkpoints[0]), ""]
        runs[checkpoints[0].name, "vLLM"] = checkpoints[0], command
    results: dict[tuple[str, str], list[dict[str, float]]] = {name: [] for name in runs}
    sizes: dict[Path, int] = {}
    for number in range(rounds):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            checkpoint, command = runs[name]
            sizes[checkpoint] = read_through(checkpoint)
            if memory_at_hand:
                touch(sizes[checkpoint] * 5 // 4 + (512 << 20))
            results[name].append(start(command))
            print(f"round {number}: {' '.join(name)} {json.dumps(results[name][-1])}", file=sys.stderr)
    rows = [
        {"checkpoint": name[0], "engine": name[1], "bytes": sizes[runs[name][0]], **medians(measured)}
        for name, measured in results.items()
    ]
    show(rows)
    if out is not None:
        raw = {" ".join(name): measured for name, measured in results.items()}
        out.write_text(json.dumps({"rows": rows, "rounds": raw}, indent=1))


def medians(measured: list[dict[str, float]]) -> dict[str, float]:
    return {name: median(one[name] for one in measured) for name in measured[0]}


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(
        "checkpoint",
        "engine",
        "start",
        "imports",
        "loading",
        "first token",
        "weights",
        "peak resident",
        "not of files",
        "of it KV",
        "peak less KV",
        title="Start to first token: medians, seconds and GiB",
        title_justify="left",
    )
    for row in rows:
        seconds = [f"{row[name]:.2f}" for name in ("start", *PHASES)]
        amounts = [f"{row[name] / (1 << 30):.2f}" for name in ("bytes", "peak", "taken", "kv")]
        ratio = f"{(row['peak'] - row['kv']) / row['bytes']:.2f} x"
        table.add_row(row["checkpoint"], row["engine"], *seconds, *amounts, ratio)
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)

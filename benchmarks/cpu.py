"""Speed on the CPU, beside vLLM and beside what the machine can do at most.

    python benchmarks/cpu.py CHECKPOINT --quantised BLOCK_FP8_CHECKPOINT --peer PYTHON_OF_VLLM

The engines run as processes of their own and measure in turn, round after round; a ratio is the median of
the rounds' ratios. Read bandwidth and the peak of products are measured before and after each of these
measurements, as neighbours on a shared host may double or halve them within seconds; what other processes
took of the processor is told too. As many bytes are read as the engine has weights: of less, caches of some
hundred MiB would answer a part. A long run can be cut: `--cases` in several runs. `--served` measures the
same through HTTP, with the server of each engine.

Without AVX-512 vLLM has no fast products of bf16: `--peer-dtype float32` is how it would be run there.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from processes import family, processor_seconds
from rich.console import Console
from rich.table import Table

from step3.checkpoint import Checkpoint
from step3.checkpoint.config import TextSizes
from step3.kernels.cpu import open_library, why_not
from step3.kernels.cpu.weights import Arena

WORKER = Path(__file__).with_name("cpu_worker.py")
SERVER_WORKER = Path(__file__).with_name("cpu_server_worker.py")
PEERS = {"vLLM bf16": "bfloat16", "vLLM float32": "float32"}
"""What vLLM computes in."""

WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1 + 4 / 128**2, "float32": 4.0}
"""Of a weight that an engine reads, by the end of its name."""

CASES = "1x128x32,4x128x24,16x128x16,64x128x12"


@dataclass(frozen=True)
class Case:
    """`batch` prompts of `prompt` tokens each, then `new` tokens."""

    batch: int
    prompt: int
    new: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.prompt}"


class Engine:
    """A worker process.

    Attributes:
        weights: bytes of the checkpoint that it runs.
        start: seconds until it was ready.
    """

    def __init__(self, name: str, command: list[str], checkpoint: Path) -> None:
        self.name = name
        self.weights = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.start = self._read()["start"]

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def measure(self, case: Case, number: int) -> dict[str, float]:
        """Prefill (where the prompts are new) and decode, tokens/s; and what others took, in cores."""
        assert self._process.stdin is not None
        before = self._processor_seconds()
        print(json.dumps([case.batch, case.prompt, case.new, number]), file=self._process.stdin, flush=True)
        result = self._read()
        wall, busy, own = (b - a for a, b in zip(before, self._processor_seconds(), strict=True))
        return {**result, "others": max(0.0, busy - own) / wall}

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended early; its output stands above")
        return json.loads(line)

    def _processor_seconds(self) -> tuple[float, float, float]:
        tick = os.sysconf("SC_CLK_TCK")
        user, nice, system, idle, iowait, irq, softirq, steal = map(
            int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
        )
        busy = user + nice + system + irq + softirq + steal
        own = sum(map(processor_seconds, family(self._process.pid)))
        wall = (busy + idle + iowait) / (os.cpu_count() or 1)
        return wall / tick, busy / tick, own


@dataclass
class Measured:
    """One case of one engine, a value for each round.

    Attributes:
        prefill, decode: tokens/s.
        others: cores that other processes took.
        bandwidth, peak: the machine's limits meanwhile, GB/s and GFLOP/s.
    """

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    bandwidth: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)


class Limits:
    """What the machine can do at most, at this moment."""

    def __init__(self, at_most: int, integers: int) -> None:
        """
        Args:
            at_most: bytes, the most that are to be read.
            integers: bits of the integers that may be multiplied.
        """
        library = open_library()
        if library is None:
            raise SystemExit(why_not())
        self._c, self._threads, self._integers = library.c, torch.get_num_threads(), integers
        self._arena = Arena(library)
        self._memory = self._arena.take(at_most)
        ctypes.memset(self._memory, 1, at_most)

    def measure(self, read: int) -> tuple[float, float]:
        """GB/s where `read` bytes are read, and GFLOP/s of products, by all threads."""
        bandwidth = self._c.step3_read_bandwidth(self._memory, read, self._threads)
        return bandwidth, self._c.step3_peak_flops(self._threads, 0.1, self._integers)


def weights_of_step(sizes: TextSizes, tokens: int, item: float) -> tuple[float, float]:
    """Bytes of weights that a step of `tokens` tokens is expected to read, and its FLOP."""
    heads = sizes.num_attention_heads * sizes.head_dim
    attention = (
        sizes.hidden_size * (sizes.share_q_dim + 2 * sizes.head_dim + heads) + sizes.share_q_dim * heads
    )
    expert = 3 * sizes.hidden_size * sizes.moe_intermediate_size
    experts, chosen = sizes.moe_num_experts, sizes.moe_top_k
    used = experts * (1 - (1 - chosen / experts) ** tokens) if experts else 0
    shared = 3 * sizes.hidden_size * sizes.share_expert_dim
    moe = len(sizes.moe_layers)
    dense = (sizes.num_hidden_layers - moe) * 3 * sizes.hidden_size * sizes.intermediate_size
    always = sizes.num_hidden_layers * attention + dense + moe * shared
    head = sizes.vocab_size * sizes.hidden_size
    read = (always + moe * used * expert) * item + head * 2
    return read, 2.0 * tokens * (always + moe * chosen * expert)


def worker(name: str, checkpoint: Path, peer: Path | None, served: bool, invariant: bool) -> list[str]:
    """The command of the process that measures an engine: itself, or a server that it starts."""
    kind, dtype = ("vllm", PEERS[name]) if name in PEERS else ("step3", "bfloat16")
    if not served:
        python = str(peer) if kind == "vllm" else sys.executable
        return [python, str(WORKER), kind, str(checkpoint), dtype, str(int(invariant))]
    environment = [str(peer.parents[1])] if kind == "vllm" and peer is not None else []
    command = [sys.executable, str(SERVER_WORKER), kind, str(checkpoint), dtype, str(int(invariant))]
    return command + environment


def run_rounds(
    engines: list[Engine], cases: list[Case], rounds: int, integers: int
) -> dict[tuple[str, Case], Measured]:
    limits = Limits(max(engine.weights for engine in engines), integers)
    results = {(engine.name, case): Measured() for engine in engines for case in cases}
    for number in range(rounds):
        for case in cases:
            # Who is first changes from round to round.
            for engine in engines[:: 1 if number % 2 else -1]:
                before = limits.measure(engine.weights)
                # Long prompts are computed once, and stay in the prefix cache for the other rounds.
                got = engine.measure(case, number if case.batch * case.prompt <= 4096 else 0)
                after = limits.measure(engine.weights)
                measured = results[engine.name, case]
                measured.bandwidth.append((before[0] + after[0]) / 2)
                measured.peak.append((before[1] + after[1]) / 2)
                measured.decode.append(got["decode"])
                measured.others.append(got["others"])
                if "prefill" in got:
                    measured.prefill.append(got["prefill"])
                # Told at once: a run that is cut short has not been for nothing.
                told = {**got, "bandwidth": measured.bandwidth[-1], "peak": measured.peak[-1]}
                print(f"round {number}: {case} {engine.name} {json.dumps(told)}", file=sys.stderr, flush=True)
    return results


def ratio(ours: list[float], theirs: list[float]) -> float:
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def main(
    checkpoint: Annotated[Path, typer.Argument(help="A bf16 checkpoint that both engines can load.")],
    quantised: Annotated[Path | None, typer.Option(help="The same in block-fp8, for Step3 alone.")] = None,
    peer: Annotated[
        Path | None, typer.Option(help="Python of an environment that has vLLM's CPU build.")
    ] = None,
    peer_dtype: Annotated[
        str, typer.Option(help="bfloat16, or float32: what vLLM is fast in without AVX-512.")
    ] = "bfloat16",
    cases: Annotated[str, typer.Option(help="BATCHxPROMPTxNEW, with commas between them.")] = CASES,
    served: Annotated[bool, typer.Option(help="Through HTTP: each engine as a server.")] = False,
    batch_invariant: Annotated[bool, typer.Option(help="Off: Step3 may use 16-bit integers.")] = True,
    rounds: Annotated[int, typer.Option(help="Times that everything is measured.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Write what was measured as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a roofline, as PNG.")] = None,
) -> None:
    """Measure, and print tokens a second, ratios and parts of the limits."""
    chosen = [Case(*map(int, case.split("x"))) for case in cases.split(",")]
    peer_name = next((name for name, dtype in PEERS.items() if dtype == peer_dtype), None)
    if peer_name is None:
        raise typer.BadParameter(f"{peer_dtype} is not one of {', '.join(PEERS.values())}")
    sizes = Checkpoint.open(checkpoint).config.text
    with ExitStack() as stack:
        runs = [("step3 bf16", checkpoint)]
        if quantised is not None:
            runs.append(("step3 fp8", quantised))
        if peer is not None:
            runs.append((peer_name, checkpoint))
        engines = [
            stack.enter_context(Engine(name, worker(name, path, peer, served, batch_invariant), path))
            for name, path in runs
        ]
        results = run_rounds(engines, chosen, rounds, 0 if batch_invariant else 16)
    # block-fp8 reads half as many bytes: its own limit counts in its rows.
    bandwidth = median(
        value for (name, _), one in results.items() if "bf16" in name for value in one.bandwidth
    )
    peak = median(value for one in results.values() for value in one.peak)
    rows = [row(engine.name, case, results, sizes, peer_name) for case in chosen for engine in engines]
    show(rows, bandwidth, peak, {engine.name: engine.start for engine in engines})
    if out is not None:
        raw = {f"{name} {case}": vars(measured) for (name, case), measured in results.items()}
        starts = {engine.name: engine.start for engine in engines}
        limits = {"bandwidth_gb_s": bandwidth, "peak_gflop_s": peak}
        out.write_text(json.dumps({"rows": rows, "rounds": raw, "start_s": starts, **limits}, indent=1))
    if plot is not None:
        draw(rows, bandwidth, peak, plot)


def row(
    name: str,
    case: Case,
    results: dict[tuple[str, Case], Measured],
    sizes: TextSizes,
    peer: str,
) -> dict[str, Any]:
    measured = results[name, case]
    kind = name.split()[-1]
    read, flops = weights_of_step(sizes, case.batch, WEIGHT_BYTES[kind])
    item = 2 * (4 if kind == "float32" else 2) * sizes.head_dim * sizes.num_hidden_layers
    read += case.batch * (case.prompt + case.new / 2) * item
    decode, prefill = median(measured.decode), median(measured.prefill)
    _, prefill_flops = weights_of_step(sizes, 1, 2)
    # A token meets half of its prompt's keys and values, on average.
    prefill_flops += 2 * sizes.num_attention_heads * sizes.head_dim * case.prompt * sizes.num_hidden_layers
    theirs = results.get((peer, case))
    return {
        "case": str(case),
        "engine": name,
        "prefill_tok_s": prefill,
        "decode_tok_s": decode,
        "prefill_ratio": None if theirs is None else ratio(measured.prefill, theirs.prefill),
        "decode_ratio": None if theirs is None else ratio(measured.decode, theirs.decode),
        # A long prompt is computed in the first round only.
        "prefill_of_peak": median(
            rate * prefill_flops / 1e9 / peak
            for rate, peak in zip(measured.prefill, measured.peak, strict=False)
        ),
        "decode_of_bandwidth": median(
            rate / case.batch * read / 1e9 / bandwidth
            for rate, bandwidth in zip(measured.decode, measured.bandwidth, strict=True)
        ),
        "decode_intensity": flops / read,
        "decode_gflop_s": decode / case.batch * flops / 1e9,
        "prefill_gflop_s": prefill * prefill_flops / 1e9,
        "others_cores": max(measured.others),
    }


def show(rows: list[dict[str, Any]], bandwidth: float, peak: float, starts: dict[str, float]) -> None:
    columns = ("case", "engine", "prefill", "x vLLM", "of peak", "decode", "x vLLM", "of bandwidth", "others")
    table = Table(
        *columns, title=f"tokens/s; {bandwidth:.1f} GB/s read, {peak:.0f} GFLOP/s", title_justify="left"
    )

    def times(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    for one in rows:
        table.add_row(
            one["case"],
            one["engine"],
            f"{one['prefill_tok_s']:.0f}",
            times(one["prefill_ratio"]),
            f"{one['prefill_of_peak']:.0%}",
            f"{one['decode_tok_s']:.1f}",
            times(one["decode_ratio"]),
            f"{one['decode_of_bandwidth']:.0%}",
            f"{one['others_cores']:.2f}",
        )
    console = Console(width=120)
    console.print(table)
    console.print(
        "start to first token: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in starts.items())
    )


def draw(rows: list[dict[str, Any]], bandwidth: float, peak: float, file: Path) -> None:
    """Decode and prefill as points under the lines of bandwidth and peak."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), dpi=150)
    axes.set(xscale="log", yscale="log", xlabel="FLOP a byte read", ylabel="GFLOP/s")
    edge = peak / bandwidth
    axes.plot([0.5, edge, 2000], [0.5 * bandwidth, peak, peak], color="0.4", lw=1)
    slope = {"rotation": math.degrees(math.atan(bandwidth)), "transform_rotates_text": True}
    axes.text(
        0.7,
        0.8 * bandwidth,
        f"{bandwidth:.0f} GB/s",
        color="0.4",
        fontsize=8,
        rotation_mode="anchor",
        **slope,
    )
    axes.text(300, peak * 1.05, f"{peak:.0f} GFLOP/s", color="0.4", fontsize=8)
    marks = {
        "step3 bf16": ("o", "tab:blue"),
        "step3 fp8": ("s", "tab:green"),
        **dict.fromkeys(PEERS, ("^", "tab:red")),
    }
    for name, (mark, colour) in marks.items():
        own = [one for one in rows if one["engine"] == name]
        points = [(one["decode_intensity"], one["decode_gflop_s"]) for one in own]
        points += [(1000.0, max(one["prefill_gflop_s"] for one in own))] if own else []
        if points:
            axes.scatter(*zip(*points, strict=True), marker=mark, color=colour, label=name, s=28, alpha=0.8)
    axes.set_ylim(top=2 * peak)
    axes.set_title("Decode at each batch size, and prefill (right)", fontsize=10)
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(file)


if __name__ == "__main__":
    typer.run(main)

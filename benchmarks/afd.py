"""How close attention and FFN apart come to the slower of the two: the time of a step against max(ΣA, ΣF).

    python benchmarks/afd.py
    python benchmarks/afd.py --lanes 1 --lanes 2 --lanes 3 --lanes 5 --sequences 32 --context 256

One attention instance and one FFN instance, each bound to a core of its own, on a network with random
weights. First each side is measured alone with the very batches that it will have: A is what attention,
router and sampling of one lane's step take when its FFNs are answered at once, F what the FFNs of one lane's
step take. Then both run together over shared memory with M lanes, and the time in which every lane has made
a step is put beside max(M·A, M·F): what a pipeline without bubbles would take.
"""

from __future__ import annotations

import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from step3 import SamplingParams
from step3.checkpoint import Checkpoint
from step3.cluster.ffn_link import FFNMember, WireLink
from step3.cluster.ffn_server import FFNServer
from step3.engine.config import EngineConfig
from step3.engine.driver import Arrived, LaneDriver
from step3.engine.engine import Engine
from step3.engine.intake import Intake
from step3.engine.network import read_network
from step3.engine.timeline import Timeline
from step3.engine.tokens import Tokens
from step3.ffn import FFNCall, FFNShard
from step3.model.configuration_step3 import Step3TextConfig
from step3.model.modeling_step3 import Step3TextForCausalLM
from step3.nano.architecture import BUNDLED
from step3.wire import AttentionEndpoint, FFNEndpoint, Format, Shapes

BAR = 1.15
WARM_STEPS = 4
FORMATS = {"float32": Format.FLOAT32, "bfloat16": Format.BFLOAT16, "fp8": Format.FP8}


def write_network(folder: Path, hidden: int, layers: int, expert_dim: int) -> None:
    """A checkpoint of random weights with the bundled model's vocabulary."""
    config = Step3TextConfig(
        vocab_size=2048,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        share_q_dim=hidden // 2,
        head_dim=64,
        moe_num_experts=8,
        moe_top_k=2,
        moe_intermediate_size=expert_dim,
        share_expert_dim=expert_dim,
        moe_layers_enum=tuple(range(1, layers)),
        max_position_embedding=4096,
    )
    torch.manual_seed(0)
    Step3TextForCausalLM(config).save_pretrained(folder)


def shapes_of(checkpoint: Checkpoint, slots: int) -> Shapes:
    sizes = checkpoint.config.text
    return Shapes(
        sizes.hidden_size, 4096, sizes.num_hidden_layers, sizes.moe_num_experts, sizes.moe_top_k, slots
    )


class LocalLink:
    """Answers each call as soon as it is waited for; with zeros, or by a shard, and then keeps the calls."""

    def __init__(self, shard: FFNShard | None) -> None:
        self._shard, self._asked = shard, list[tuple[int, FFNCall]]()
        self.calls: list[FFNCall] = []

    def send(self, lane: int, call: FFNCall) -> None:
        self._asked.append((lane, call))

    def wait(self, timeout: float | None) -> list[Arrived]:
        asked, self._asked = self._asked, []
        return [Arrived(lane, self._output(call), lambda: None) for lane, call in asked]

    def wake(self) -> None:
        return None

    def close(self) -> None:
        return None

    def _output(self, call: FFNCall) -> Tensor:
        if self._shard is None:
            return torch.zeros_like(call.x)
        self.calls.append(call)
        return self._shard.forward(call)


class Attention:
    """An engine without FFNs whose lanes all decode as many sequences."""

    def __init__(self, folder: Path, lanes: int, sequences: int, context: int, tokens: int) -> None:
        checkpoint = Checkpoint.open(folder)
        config = EngineConfig(
            dtype="float32",
            max_num_seqs=lanes * sequences,
            max_num_batched_tokens=4096 * lanes,
            max_model_len=context + tokens + 8,
        )
        network = read_network(folder, checkpoint.config)
        self.engine = Engine(config, checkpoint, network, num_lanes=lanes, holds_ffn=False)
        intake = Intake(config, network, Tokens.load(BUNDLED, sees=False), config.max_model_len or 0)
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        for number in range(lanes * sequences):
            prompt = [20 + (number * 7 + place * 13) % 400 for place in range(context)]
            self.engine.add(intake.request(prompt, params))

    def warm_up(self, driver: LaneDriver) -> None:
        """Until every sequence decodes."""
        lanes = self.engine.lanes
        while any(one.num_output_tokens < WARM_STEPS for lane in lanes for one in lane.scheduler.running) or (
            self.engine.statistics().waiting
        ):
            driver.step()


def seconds_of_round(attention: Attention, driver: LaneDriver, steps: int) -> float:
    """Mean seconds in which every lane makes a step."""
    lanes = driver.timeline.lanes
    before, began = sum(lane.steps for lane in lanes), time.perf_counter()
    while (done := sum(lane.steps for lane in lanes) - before) < steps * len(lanes):
        driver.step()
    return (time.perf_counter() - began) * len(lanes) / done


def measure_ffn(folder: Path, calls: list[FFNCall], rounds: int) -> float:
    """Seconds of the FFNs of one lane's step: the median over rounds."""
    shard = FFNShard.load(Checkpoint.open(folder), torch.float32)
    times = []
    with torch.inference_mode():
        for number in range(rounds + 2):
            began = time.perf_counter()
            for call in calls:
                shard.forward(call)
            if number >= 2:
                times.append(time.perf_counter() - began)
    return statistics.median(times)


def serve_ffn(folder: Path, address: str, secret: bytes, core: int, spin: float) -> None:
    """The FFN instance, in a process of its own."""
    os.sched_setaffinity(0, {core})
    checkpoint = Checkpoint.open(folder)
    endpoint = FFNEndpoint(0, shapes_of(checkpoint, 64), secret, spin=spin)
    endpoint.listen(address)
    print("ready", flush=True)
    FFNServer(endpoint, FFNShard.load(checkpoint, torch.float32), torch.float32).run(lambda: True)


def measure(
    folder: Path,
    lanes: int,
    sequences: int,
    context: int,
    steps: int,
    formats: tuple[Format, Format],
    ffn_core: int,
    spin: float,
) -> dict[str, float]:
    """A, F and the time of a round, in milliseconds; `ffn_core` is where the FFN instance runs."""
    checkpoint = Checkpoint.open(folder)
    tokens = 3 * (steps + WARM_STEPS) + 64
    # The batches that the FFN side will see.
    seen = Attention(folder, lanes, sequences, context, tokens)
    recording = LocalLink(FFNShard.load(checkpoint, torch.float32))
    driver = LaneDriver(seen.engine, recording)
    seen.warm_up(driver)
    calls = recording.calls[-checkpoint.config.text.num_hidden_layers :]
    alone = LaneDriver(seen.engine, LocalLink(None))
    seconds_of_round(seen, alone, 2)
    attention = seconds_of_round(seen, alone, steps) / lanes
    ffn = measure_ffn(folder, calls, max(5, steps // 2))
    del seen

    secret, address = secrets.token_bytes(32), f"shm://step3-benchmark-{secrets.token_hex(6)}"
    arguments = ["--ffn", str(folder), "--address", address, "--core", str(ffn_core), "--spin", str(spin)]
    other = subprocess.Popen(
        [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.write(secret)
        other.stdin.close()
        other.stdout.readline()
        both = Attention(folder, lanes, sequences, context, tokens)
        activations, partials = formats
        endpoint = AttentionEndpoint(
            0,
            shapes_of(checkpoint, 2 * lanes),
            secret,
            activations=activations,
            partials=partials,
            spin=spin,
        )
        timeline = Timeline(lanes)
        link = WireLink(endpoint, 1, timeline)
        link.use([FFNMember(0, 0, 0, address)])
        driver = LaneDriver(both.engine, link, timeline)
        both.warm_up(driver)
        seconds_of_round(both, driver, 2)
        idle = timeline.idle_seconds
        began = time.perf_counter()
        together = seconds_of_round(both, driver, steps)
        bubbles = (timeline.idle_seconds - idle) / (time.perf_counter() - began)
        driver.close()
    finally:
        other.kill()
        other.wait()
    bound = lanes * max(attention, ffn)
    return {
        "lanes": lanes,
        "attention_ms": attention * 1e3,
        "ffn_ms": ffn * 1e3,
        "round_ms": together * 1e3,
        "bound_ms": bound * 1e3,
        "ratio": together / bound,
        "idle": bubbles,
    }


def main(
    lanes: Annotated[
        list[int] | None, typer.Option(help="Micro-batches; may be given several times.")
    ] = None,
    sequences: Annotated[int, typer.Option(help="Sequences of each lane.")] = 32,
    context: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 128,
    steps: Annotated[int, typer.Option(help="Steps of each lane to measure.")] = 12,
    hidden: Annotated[int, typer.Option(help="Channels.")] = 1024,
    layers: Annotated[int, typer.Option(help="Decoder layers.")] = 6,
    expert_dim: Annotated[int, typer.Option(help="Intermediate size of an expert.")] = 512,
    activations: Annotated[str, typer.Option(help="float32, bfloat16 or fp8 on the wire.")] = "float32",
    partials: Annotated[str, typer.Option(help="float32 or bfloat16 back.")] = "float32",
    out: Annotated[Path | None, typer.Option(help="Write JSON, too.")] = None,
    ffn: Annotated[Path | None, typer.Option(hidden=True)] = None,
    spin: Annotated[float, typer.Option(help="Seconds either side looks again before it sleeps.")] = 1e-4,
    address: Annotated[str, typer.Option(hidden=True)] = "",
    core: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """Measure the pipeline of attention and FFN on two cores."""
    torch.set_num_threads(1)
    if ffn is not None:
        serve_ffn(ffn, address, sys.stdin.buffer.read(), core, spin)
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise typer.BadParameter("two cores are needed, one for each side")
    os.sched_setaffinity(0, {cores[0]})
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_network(Path(folder), hidden, layers, expert_dim)
        for count in lanes or [1, 2, 3, 4]:
            formats = FORMATS[activations], FORMATS[partials]
            found = measure(
                Path(folder), count, sequences, context, steps, formats, ffn_core=cores[1], spin=spin
            )
            rows.append(found)
    title = (
        f"{sequences} sequences a lane, context {context}, {layers} layers of {hidden}, {activations} wire"
    )
    table = Table("M", "A ms", "F ms", "step ms", "max(ΣA, ΣF) ms", "ratio", "idle", title=title)
    for row in rows:
        table.add_row(
            str(row["lanes"]),
            *(f"{row[name]:.1f}" for name in ("attention_ms", "ffn_ms", "round_ms", "bound_ms")),
            f"{row['ratio']:.2f}",
            f"{row['idle']:.0%}",
        )
    Console().print(table)
    deep = [row["ratio"] for row in rows if row["lanes"] >= 3]
    if deep:
        verdict = "within" if max(deep) <= BAR else "over"
        print(f"with 3 lanes or more {max(deep):.2f} at most: {verdict} the bar of {BAR}")
    if out is not None:
        out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    typer.run(main)

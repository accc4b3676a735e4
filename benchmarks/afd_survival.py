"""Kills instances again and again under running streams: does any request fail, any text change, and how long
until tokens come again?

    python benchmarks/afd_survival.py
    python benchmarks/afd_survival.py --seconds 300 --streams 32 --topology 2A2F:ep1xr2

Streams run all the time; one that ends is begun anew. Every few seconds an FFN instance or an attention
instance, by turns, is killed (SIGKILL), now and then frozen (SIGSTOP). A recovery is the time from the blow
to the next token of each stream that the victim served: all that run for an FFN instance, for an attention
instance its own. At the end every text is compared with that of an undisturbed run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from step3 import LLM, SamplingParams
from step3.engine.outputs import RequestOutput
from step3.engine.sampling.params import RequestOutputKind

GOALS = {"attention": 1.0, "ffn": 0.3}
"""Seconds of the median recovery."""


@dataclass(eq=False)
class Stream:
    """One request and when its tokens came."""

    number: int
    text: str = ""
    times: list[float] = field(default_factory=list)
    error: str | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def put(self, output: RequestOutput | Exception) -> None:
        if isinstance(output, Exception):
            self.error = str(output)
            self.ended.set()
            return
        self.text += "".join(one.text for one in output.outputs)
        if any(one.token_ids for one in output.outputs):
            self.times.append(time.monotonic())
        if output.finished:
            self.ended.set()


def begin(llm: LLM, number: int, tokens: int) -> Stream:
    """Every other one is sampled, from a seed of its own."""
    stream = Stream(number)
    prompt = {"prompt_token_ids": [20 + number % 400, *range(30, 60), 27 + number % 5]}
    params = SamplingParams(
        temperature=0.0 if number % 2 else 0.8,
        seed=number,
        max_tokens=tokens,
        ignore_eos=True,
        output_kind=RequestOutputKind.DELTA,
    )
    request = llm.cluster.request(prompt, params)
    llm.cluster.submit(request, prompt, params, stream.put)
    return stream


def victims(llm: LLM, role: str) -> list[dict[str, Any]]:
    return [one for one in llm.cluster.describe()[role] if one["state"] == "ready"]


def is_whole(llm: LLM) -> bool:
    found, topology = llm.cluster.describe(), llm.cluster.cluster.topology
    counts = [sum(one["state"] == "ready" for one in found[role]) for role in ("attention", "ffn")]
    return counts == [topology.attention, topology.ffn]


def recoveries(streams: list[Stream], blow: float) -> list[float]:
    """Seconds from a blow to the next token of each stream that was under way."""
    found = []
    for stream in streams:
        before = [moment for moment in stream.times if moment <= blow]
        after = [moment for moment in stream.times if moment > blow]
        if before and after:
            found.append(after[0] - blow)
    return found


def main(
    model: Annotated[str | None, typer.Argument(help="A checkpoint; the bundled model if none.")] = None,
    seconds: Annotated[float, typer.Option(help="How long to go on.")] = 300.0,
    streams: Annotated[int, typer.Option(help="Requests that run together.")] = 32,
    tokens: Annotated[int, typer.Option(help="Of each answer.")] = 400,
    topology: Annotated[str, typer.Option(help="Of the deployment.")] = "2A2F:ep1xr2",
    every: Annotated[float, typer.Option(help="Seconds between blows, if the deployment is whole.")] = 3.0,
    freeze: Annotated[float, typer.Option(help="Part of the blows that freeze instead of killing.")] = 0.1,
    lease: Annotated[float, typer.Option(help="Seconds of silence that count as death.")] = 1.5,
    dtype: Annotated[str, typer.Option(help="Of activations and weights; also on the wire.")] = "bfloat16",
    out: Annotated[Path | None, typer.Option(help="Write JSON, too.")] = None,
) -> None:
    """Measure how a deployment survives."""
    draw = random.Random(0)
    options: dict[str, Any] = {"dtype": dtype, "max_model_len": 1024, "threads": 1, "lease": lease}
    llm = LLM(model, topology=topology, quiet=True, max_num_seqs=streams, **options)
    running = [begin(llm, number, tokens) for number in range(streams)]
    done: list[Stream] = []
    blows: list[tuple[str, str, float]] = []
    next_number, until = streams, time.monotonic() + seconds
    next_blow = time.monotonic() + every
    while running:
        now = time.monotonic()
        for stream in [one for one in running if one.ended.is_set()]:
            running.remove(stream)
            done.append(stream)
            if now < until:
                running.append(begin(llm, next_number, tokens))
                next_number += 1
        if next_blow < now < until and is_whole(llm):
            role = ("ffn", "attention")[len(blows) % 2]
            victim = draw.choice(victims(llm, role))
            how = signal.SIGSTOP if draw.random() < freeze else signal.SIGKILL
            blows.append((role, how.name, time.monotonic()))
            os.kill(victim["pid"], how)
            next_blow = now + every
        time.sleep(0.005)
    found = llm.cluster.describe()
    llm.shutdown()

    alone = LLM(model, quiet=True, max_num_seqs=streams, dtype=dtype, max_model_len=1024)
    ordered = sorted(done, key=lambda stream: stream.number)
    prompts = [
        {"prompt_token_ids": [20 + s.number % 400, *range(30, 60), 27 + s.number % 5]} for s in ordered
    ]
    params = [
        SamplingParams(
            temperature=0.0 if s.number % 2 else 0.8, seed=s.number, max_tokens=tokens, ignore_eos=True
        )
        for s in ordered
    ]
    whole = alone.generate(prompts, [replace(one) for one in params], use_tqdm=False)
    failed = [s.error for s in done if s.error is not None]
    differ = sum(s.text != o.outputs[0].text for s, o in zip(ordered, whole, strict=True))

    table = Table("instance", "blow", "blows", "p50 s", "p99 s", "goal s")
    result: list[dict[str, Any]] = []
    for role in ("ffn", "attention"):
        for how in ("SIGKILL", "SIGSTOP"):
            own = [moment for one, kind, moment in blows if (one, kind) == (role, how)]
            times = sorted(value for moment in own for value in _affected(done, moment, role))
            if not times:
                continue
            p50, p99 = statistics.median(times), times[min(len(times) - 1, int(0.99 * len(times)))]
            goal = f"{GOALS[role]:g}" if how == "SIGKILL" else ""
            table.add_row(role, how, str(len(own)), f"{p50:.3f}", f"{p99:.3f}", goal)
            result.append({"role": role, "how": how, "blows": len(own), "p50": p50, "p99": p99})
    Console().print(table)
    print(
        f"{len(done)} requests, {len(failed)} failed, {differ} with another text than alone; "
        f"{found['moved_requests']} moved, restarts {found['restarts']}"
    )
    if out is not None:
        summary = {"requests": len(done), "failed": len(failed), "differ": differ, "recoveries": result}
        out.write_text(json.dumps(summary, indent=1))
    if failed or differ:
        raise typer.Exit(1)


def _affected(streams: list[Stream], blow: float, role: str) -> list[float]:
    """Recoveries of the streams that the blow hit: for attention those whose gap is longer than the usual,
    as half of them run elsewhere."""
    times = recoveries(streams, blow)
    if role == "ffn" or not times:
        return times
    return sorted(times)[len(times) // 2 :]


if __name__ == "__main__":
    typer.run(main)

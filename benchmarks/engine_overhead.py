"""What a step costs besides the network: scheduling, batch, sampling, bookkeeping.

    python benchmarks/engine_overhead.py CHECKPOINT --sequences 64 --context 512

Medians over the steps, of one thread. The network (the decoder's layers, the FFNs, the head, the likeliest
tokens where it tells them) is measured too, and shown apart. Every sequence decodes a token a step.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from step3 import SamplingParams
from step3.engine import lane as lane_module
from step3.engine.config import EngineConfig
from step3.engine.engine import Engine
from step3.engine.loading import Loaded, load

PARTS = {
    "schedule": "schedule",
    "build": "batch",
    "sample": "sample",
    "rest": "append, text, stop, prefix cache, statistics",
}
NETWORK = ("decode", "forward", "logits")
GOAL_MS = 1.0


class Clock:
    """Seconds of each part of each step; a part within another counts for itself alone."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._now: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def _begin(self, name: str) -> None:
        now = time.perf_counter()
        if self._open:
            self._now[self._open[-1]] += now - self._since
        self._open.append(name)
        self._since = now

    def _end(self) -> None:
        now = time.perf_counter()
        self._now[self._open.pop()] += now - self._since
        self._since = now

    def watch(self, owner: Any, name: str, part: str | None = None) -> None:
        """Counts calls of `owner.name`, as a part of that name or another."""
        call: Callable[..., Any] = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._begin(part or name)
            result = call(*args, **kwargs)
            self._end()
            return result

        setattr(owner, name, counted)

    def watch_generator(self, owner: Any, name: str) -> None:
        """Counts what happens inside the generator that `owner.name` returns."""
        call = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            inner, answer = call(*args, **kwargs), None
            while True:
                self._begin(name)
                try:
                    asked = inner.send(answer)
                except StopIteration as end:
                    self._end()
                    return end.value
                self._end()
                answer = yield asked

        setattr(owner, name, counted)

    def step(self, engine: Engine) -> None:
        self._begin("rest")
        engine.step()
        self._end()
        self.steps.append(dict(self._now))
        self._now.clear()


@torch.inference_mode()
def measure(model: Loaded, sequences: int, context: int, steps: int, params: SamplingParams) -> Clock:
    """Runs `steps` steps in which all sequences decode."""
    engine, clock = model.engine, Clock()
    for i in range(sequences):
        prompt = [20 + (i * 7 + j * 13) % 400 for j in range(context)]
        engine.add(model.intake.request(prompt, params))
    own = engine.lanes[0]
    while engine.statistics().waiting or any(one.num_output_tokens < 4 for one in own.scheduler.running):
        engine.step()
    clock.watch(own.scheduler, "schedule")
    clock.watch(own._builder, "build")
    clock.watch_generator(own._decoder, "decode")
    clock.watch(own._decoder, "logits")
    clock.watch(engine.ffn, "forward")
    clock.watch(lane_module, "sample")
    clock.watch(lane_module, "sample_likeliest", "sample")
    for _ in range(steps):
        clock.step(engine)
    return clock


def main(
    checkpoint: Annotated[
        str | None, typer.Argument(help="A checkpoint's folder; the bundled model if none.")
    ] = None,
    sequences: Annotated[int, typer.Option(help="Sequences that decode together.")] = 64,
    context: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 256,
    steps: Annotated[int, typer.Option(help="Steps to measure.")] = 200,
    dtype: Annotated[str, typer.Option(help="As LLM takes it.")] = "auto",
    temperature: Annotated[float, typer.Option(help="0 for greedy.")] = 0.0,
    out: Annotated[Path | None, typer.Option(help="Write the medians as JSON, too.")] = None,
) -> None:
    """Measure what a decode step costs in Python, apart from the network."""
    torch.set_num_threads(1)
    config = EngineConfig(
        model=checkpoint,
        dtype=dtype,
        max_num_seqs=sequences,
        max_num_batched_tokens=max(2048, sequences),
        max_model_len=context + steps + 64,
    )
    model = load(config)
    params = SamplingParams(temperature=temperature, max_tokens=steps + 64, ignore_eos=True, seed=0)
    clock = measure(model, sequences, context, steps, params)
    medians = {
        part: 1e3 * statistics.median(step.get(part, 0.0) for step in clock.steps)
        for part in (*PARTS, *NETWORK)
    }
    overhead = 1e3 * statistics.median(sum(step.get(part, 0.0) for part in PARTS) for step in clock.steps)
    network = 1e3 * statistics.median(sum(step.get(part, 0.0) for part in NETWORK) for step in clock.steps)
    vocabulary = model.engine.network.sizes.vocab_size
    title = f"{sequences} sequences, context {context}, vocabulary {vocabulary}, ms a step"
    table = Table("part", "ms", title=title, title_justify="left")
    for part, name in PARTS.items():
        table.add_row(name, f"{medians[part]:.3f}")
    table.add_section()
    table.add_row("all but the network", f"{overhead:.3f}")
    table.add_row("the network", f"{network:.3f}")
    Console().print(table)
    print(f"{'within' if overhead <= GOAL_MS else 'over'} the goal of {GOAL_MS:g} ms")
    if out is not None:
        result = {"sequences": sequences, "context": context, "vocabulary": vocabulary, "steps": steps}
        out.write_text(
            json.dumps({**result, "overhead_ms": overhead, "network_ms": network, "parts_ms": medians})
        )


if __name__ == "__main__":
    typer.run(main)

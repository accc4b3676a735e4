"""Measures stage times on this machine, as `step3 simulate --times` reads them.

Used by `simulator_against_runs.py`. All comes of runs of one attention and one FFN instance:

- with one lane, nothing ever waits, so that spans are the stages' own times: attention of a layer by rows and
  context, the FFN of a layer by rows, what is between them, what comes once a step, prompts by chunks;
- with three lanes both instances compute at once: by how much each is slower for that, and what passes
  between two calls of an FFN instance that has more to do;
- an FFN instance that holds a part of every FFN takes the share of the whole one's time that it takes alone.

A stage's time is the median over its spans: what other threads take from a few of them is simulated.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from afd_run import DENSE_LAYERS, EXPERTS, LAYERS, Asked, Deployment, Run

from step3.checkpoint import Checkpoint
from step3.ffn import FFNCall, FFNShard, split

CHUNK = 256
"""Tokens of a lane's step at most, here and where the simulator is held against runs."""

DECODED = (1, 4, 16, 32, 64)
"""Sequences of a decoding step for which stages are measured."""

LONG = 400
"""Prompt tokens of a load whose context is long."""

KINDS = ((0, range(DENSE_LAYERS)), (1, range(DENSE_LAYERS, LAYERS)))
"""Layers that take the same times."""

TRACED = {1: 26.0, 3: 7.0}
"""Seconds of the traces, by lanes."""


def spaced(count: int, seconds: float, prompt: int) -> list[Asked]:
    return [Asked(number * seconds, prompt, 1) for number in range(count)]


ALONE: tuple[list[Asked], ...] = (
    spaced(8, 0.12, 64),
    spaced(6, 0.25, 128),
    spaced(1, 0.0, 6 * CHUNK),
    *([Asked(0.0, 32, 32)] * count for count in DECODED),
    [Asked(0.0, LONG, 32)] * 16,
)
"""Loads for one lane, each of which is in the trace by itself."""

TOGETHER = [Asked(0.0, 32, 64)] * 36
"""A load for three lanes."""


class Span(NamedTuple):
    """A stretch of time in microseconds; `layer` is -1 behind the last one."""

    start: float
    end: float
    layer: int
    rows: int

    @property
    def length(self) -> float:
        return self.end - self.start


class Spans(NamedTuple):
    """What one run's trace has: attention's work, the FFN instance's, and the FFNs as the lanes saw them."""

    attention: list[Span]
    ffn: list[Span]
    away: list[Span]


def spans_of(events: Sequence[Mapping[str, Any]], runs: Sequence[Run]) -> list[Spans]:
    """The spans of each run; they begin with the trace's first one."""
    work = [event for event in events if event["ph"] == "X"]
    found = []
    for run in runs:
        start = (run.began - runs[0].began) * 1e6 - 1e5
        during = [event for event in work if start <= event["ts"] < start + run.seconds * 1e6 + 2e5]
        attention, ffn, away = [], [], []
        for event in sorted(during, key=lambda event: float(event["ts"])):
            args = event["args"]
            span = Span(event["ts"], event["ts"] + event["dur"], args["layer"], args["tokens"])
            if event["pid"] == 1:
                ffn.append(span)
            elif event["name"] == "attention":
                attention.append(span)
            elif event["name"] == "ffn":
                away.append(span)
        found.append(Spans(attention, ffn, away))
    return found


def calibrate(folder: Path, shardings: Iterable[tuple[int, int]]) -> dict[str, Any]:
    """Everything, by sharding `(experts' ranges, slices)` in the form of a file for `--times`.

    Returns:
        `{"1x1": {...}, "2x1": {...}}`.
    """
    with Deployment(folder, "1A1F", 1, 64, CHUNK, bind_cores=True) as deployment:
        runs, events = deployment.play_traced(ALONE, TRACED[1])
        foreign = max(run.foreign for run in runs)
    alone = spans_of(events, runs)
    with Deployment(folder, "1A1F", 3, 64, 3 * CHUNK, bind_cores=True) as deployment:
        both, events = deployment.play_traced([TOGETHER], TRACED[3])
    print(f"calibration: others had {max(foreign, both[0].foreign):.1%} of the cores' time at most")
    together = spans_of(events, both)[0]
    times = stage_times(alone, together)
    times["host"]["front_us"] = both[0].front / both[0].tokens * 1e6
    files = {}
    for experts, slices in shardings:
        kinds = []
        for (_, layers), kind in zip(KINDS, times["kinds"], strict=True):
            share = shares(folder, layers[0], kind["ffn"]["sequences"], experts, slices)
            us = [each * part for each, part in zip(kind["ffn"]["us"], share, strict=True)]
            kinds.append({**kind, "ffn": {**kind["ffn"], "us": us}})
        files[f"{experts}x{slices}"] = {**times, "kinds": kinds}
    return files


def stage_times(alone: Sequence[Spans], together: Spans) -> dict[str, Any]:
    """The times of a whole FFN instance and an attention instance."""
    short64, short128, chunked, *decoded, long = alone
    between = median(
        after.start - before.end
        for before, after in pairwise(together.ffn)
        if after.start - before.end < 1000
    )
    gaps, step_gaps = [], {}
    for rows, one in zip(DECODED, decoded, strict=True):
        out, back, steps = hops(one, rows)
        gaps.append(out + back)
        step_gaps[rows] = steps
    kinds = []
    core_per_token, prefill = 0.0, 0.0
    for _, layers in reversed(KINDS):
        low, high = decoded[DECODED.index(16)], long
        grown = attention_time(high, layers, 16) - attention_time(low, layers, 16)
        core_per_token = max(grown / (16 * (LONG - 32)), 0.0)
        chunks = [
            [span.length for span in chunked.attention if span.layer == layer and span.rows == CHUNK]
            for layer in layers
        ]
        rises = [
            (last - first) / (CHUNK * CHUNK * (len(lengths) - 1))
            for lengths in chunks
            for first, last in [(lengths[0], lengths[-1])]
        ]
        prefill = max(statistics.median(rises), 0.0)
        base = {
            rows: attention_time(one, layers, rows) - core_per_token * rows * 48
            for rows, one in zip(DECODED, decoded, strict=True)
        }
        del base[64]
        for rows, one in ((64, short64), (128, short128)):
            base[rows] = attention_time(one, layers, rows) - prefill * rows * rows / 2
        base[CHUNK] = median(
            length - prefill * CHUNK * CHUNK * (number + 0.5)
            for lengths in chunks
            for number, length in enumerate(lengths)
        )
        ffn = {rows: ffn_time(one, layers, rows) for rows, one in zip(DECODED, decoded, strict=True)}
        for rows, one in ((128, short128), (CHUNK, chunked)):
            ffn[rows] = ffn_time(one, layers, rows)
        far = 1000.0
        kinds.insert(
            0,
            {
                "layers": len(layers),
                "attention": {
                    "sequences": list(base),
                    "contexts": [0, far],
                    "us": [
                        [each + between, each + between + core_per_token * rows * far]
                        for rows, each in base.items()
                    ],
                },
                "out": {"sequences": [1], "us": [0.0]},
                "ffn": {"sequences": list(ffn), "us": [each + between for each in ffn.values()]},
                "back": {"sequences": [1], "us": [0.0]},
            },
        )
    head = {
        rows: median(span.length for span in one.attention if span.layer < 0 and span.rows == rows)
        + step_gaps[rows]
        for rows, one in zip(DECODED, decoded, strict=True)
    }
    times: dict[str, Any] = {
        "kinds": kinds,
        "head": {"sequences": list(head), "us": list(head.values())},
        "prefill_us": prefill,
        "host": {"cores": 2, "wake_us": max(median(gaps) / 2 - between, 0.0)},
    }
    times["host"] |= contention(times, together, between)
    return times


def median(values: Iterable[float]) -> float:
    return statistics.median(list(values))


def attention_time(spans: Spans, layers: range, rows: int) -> float:
    return median(span.length for span in spans.attention if span.layer in layers and span.rows == rows)


def ffn_time(spans: Spans, layers: range, rows: int) -> float:
    return median(span.length for span in spans.ffn if span.layer in layers and span.rows == rows)


def hops(spans: Spans, rows: int) -> tuple[float, float, float]:
    """Medians of what passes from attention to FFN, from FFN to attention, and from a step to the next.

    The FFN instance works a little longer than the lane sees: it hands its answer over.
    """
    handing = median(span.length for span in spans.ffn) - median(span.length for span in spans.away)
    computing = [(span, True) for span in spans.attention if span.rows == rows]
    seen = sorted(computing + [(span, False) for span in spans.away if span.rows == rows])
    out, back, steps = [], [], []
    for (before, was_attention), (after, is_attention) in pairwise(seen):
        gap = after.start - before.end
        if was_attention and is_attention and before.layer < 0:
            steps.append(gap)
        elif was_attention and not is_attention:
            out.append(gap)
        elif is_attention and not was_attention:
            back.append(gap - handing)
    return median(out), median(back), median(steps)


def contention(times: Mapping[str, Any], together: Spans, between: float) -> dict[str, float]:
    """By what share each side is slower while the other computes."""
    rows = len(TOGETHER) // 3
    busy, ratios = {}, {}
    for side, spans in (("attention", together.attention), ("ffn", together.ffn)):
        whole = spans[-1].end - spans[0].start
        busy[side] = sum(span.length for span in spans) / whole
        observed, expected = 0.0, 0.0
        for (_, layers), kind in zip(KINDS, times["kinds"], strict=True):
            for layer in layers:
                lengths = [span.length for span in spans if span.layer == layer and span.rows == rows]
                observed += median(lengths)
                points = kind[side]
                us = (
                    [row[0] + (row[1] - row[0]) * 0.064 for row in points["us"]]
                    if side == "attention"
                    else points["us"]
                )
                expected += between_points(points["sequences"], us, rows) - between
        ratios[side] = observed / expected - 1
    return {
        "attention_contention": max(ratios["attention"] / busy["ffn"], 0.0),
        "ffn_contention": max(ratios["ffn"] / busy["attention"], 0.0),
    }


def between_points(sizes: Sequence[float], values: Sequence[float], size: float) -> float:
    right = next(number for number, each in enumerate(sizes) if each >= size)
    if right == 0:
        return values[0]
    share = (size - sizes[right - 1]) / (sizes[right] - sizes[right - 1])
    return values[right - 1] + share * (values[right] - values[right - 1])


@torch.inference_mode()
def shares(folder: Path, layer: int, rows: Sequence[int], experts: int, slices: int) -> list[float]:
    """What part of a layer's FFN takes of the whole one's time, by rows; the mean over the parts."""
    if experts * slices == 1:
        return [1.0] * len(rows)
    checkpoint = Checkpoint.open(folder)
    whole = FFNShard.load(checkpoint, torch.bfloat16)
    parts = [
        FFNShard.load(checkpoint, torch.bfloat16, piece=piece) for piece in split(EXPERTS, experts, slices)
    ]
    found = []
    for count in rows:
        call = example(layer, count, checkpoint.config.text.hidden_size)
        seconds: dict[int, list[float]] = {number: [] for number in range(len(parts) + 1)}
        for _ in range(12 if count < 128 else 6):
            for number, shard in enumerate((whole, *parts)):
                began = time.perf_counter()
                shard.forward(call)
                seconds[number].append(time.perf_counter() - began)
        first, *others = (statistics.median(each) for each in seconds.values())
        found.append(statistics.mean(others) / first)
    return found


def example(layer: int, rows: int, hidden: int) -> FFNCall:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, hidden, generator=generator).to(torch.bfloat16)
    if layer < DENSE_LAYERS:
        return FFNCall(layer, x)
    ids = torch.rand(rows, EXPERTS, generator=generator).topk(2).indices
    return FFNCall(layer, x, ids, torch.full((rows, 2), 0.5))

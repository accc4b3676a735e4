"""Requests that come: when, how long their prompts are, how many tokens they want."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from step3.plan.simulate.errors import SimulationError
from step3.plan.workload import MAX_LINE_BYTES, Contexts

MAX_TOKENS = 1 << 30
MAX_RATE = 1e6
MAX_CONCURRENCY = 100_000_000
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrives."""

    arrival: float
    """Seconds since the simulation began."""
    prompt: int
    """Tokens."""
    output: int
    """Tokens that it wants, at least 1."""


@dataclass(frozen=True)
class Lengths:
    """How long prompts and outputs are, each drawn on its own."""

    prompt: Contexts
    output: Contexts

    @classmethod
    def around(cls, contexts: Contexts, output: Contexts) -> "Lengths":
        """Lengths with which the mean context in decoding is that of `contexts`.

        Raises:
            SimulationError: the contexts are too short to decode that many tokens in.
        """
        squares = sum(length * length * share for length, share in output.lengths)
        grown = squares / output.mean / 2
        if min(length for length, _ in contexts.lengths) <= grown:
            raise SimulationError(
                f"--context {contexts.mean:,.0f} leaves no room for a prompt: half of the output, "
                f"{grown:,.0f} tokens on average, is context too; shorten --output or give --prompt"
            )
        return cls(Contexts(tuple((length - grown, share) for length, share in contexts.lengths)), output)

    def draws(self, generator: np.random.Generator) -> Iterator[tuple[int, int]]:
        """(prompt, output) for ever."""
        while True:
            prompts = _draw(self.prompt, generator, _BLOCK)
            outputs = _draw(self.output, generator, _BLOCK)
            yield from zip(prompts, outputs, strict=True)

    def in_decoding(self, generator: np.random.Generator) -> Iterator[tuple[int, int, int]]:
        """(prompt, output, tokens already made) of requests met at a random moment of their decoding.

        Long outputs are met more often; each is met anywhere in its output with the same chance.
        """
        longer = Contexts(
            tuple((length, length * share / self.output.mean) for length, share in self.output.lengths)
        )
        while True:
            prompts = _draw(self.prompt, generator, _BLOCK)
            outputs = _draw(longer, generator, _BLOCK)
            ages = generator.random(_BLOCK)
            for prompt, output, age in zip(prompts, outputs, ages.tolist(), strict=True):
                yield prompt, output, int(age * output)

    def decoding_contexts(self, count: int = 4096, quantiles: int = 64) -> Contexts:
        """The contexts that requests of these lengths are decoded at."""
        ages = self.in_decoding(np.random.default_rng(0))
        met = sorted(prompt + made for (prompt, _, made), _ in zip(ages, range(count), strict=False))
        size = count // quantiles
        groups = [met[i : i + size] for i in range(0, count, size)]
        return Contexts(tuple((sum(group) / size, 1 / quantiles) for group in groups))


def _draw(lengths: Contexts, generator: np.random.Generator, count: int) -> list[int]:
    values = np.array([length for length, _ in lengths.lengths])
    if len(values) == 1:
        return [max(round(values[0]), 1)] * count
    shares = np.array([share for _, share in lengths.lengths])
    drawn = generator.choice(values, count, p=shares / shares.sum())
    return [int(each) for each in np.maximum(np.rint(drawn), 1)]


@dataclass(frozen=True)
class ClosedLoop:
    """So many requests are always under way: when one ends, the next one comes."""

    concurrency: int

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= MAX_CONCURRENCY:
            raise SimulationError(
                f"the concurrency must be from 1 to {MAX_CONCURRENCY:,}, not {self.concurrency:,}"
            )


@dataclass(frozen=True)
class OpenLoop:
    """Requests come whether or not others have ended."""

    rate: float
    """Requests a second."""
    random: bool = True
    """A Poisson process; else one every 1/rate seconds."""

    def __post_init__(self) -> None:
        if not 0 < self.rate <= MAX_RATE:
            raise SimulationError(f"the rate must be above 0 and at most {MAX_RATE:g} requests a second")

    def times(self, generator: np.random.Generator) -> Iterator[float]:
        """Seconds of every arrival, for ever."""
        now = 0.0
        while True:
            gaps = generator.exponential(1 / self.rate, _BLOCK).tolist() if self.random else [1 / self.rate]
            for gap in gaps:
                now += gap
                yield now


@dataclass(frozen=True)
class Trace:
    """Requests as a JSONL file has them, replayed at their own times."""

    path: Path

    def requests(self) -> Iterator[Request]:
        """Its requests, read as they are needed.

        Raises:
            SimulationError: the file cannot be read, or a line is wrong (its number is named).
        """
        last = 0.0
        for number, line in _lines(self.path):
            where = f"{self.path}, line {number}"
            if not isinstance(line, dict):
                raise SimulationError(f"{where}: expected an object, like {_EXAMPLE}")
            arrival = _arrival(line, where)
            if arrival < last:
                raise SimulationError(f"{where}: earlier than the line before it; sort the trace by time")
            last = arrival
            prompt = _tokens(line, where, "prompt_tokens", "input_length")
            yield Request(arrival, prompt, _tokens(line, where, "output_tokens", "output_length"))

    def lengths(self) -> Lengths:
        """How long its first 100,000 requests are.

        Raises:
            SimulationError: as `requests`, or the trace is empty.
        """
        prompts: dict[int, int] = {}
        outputs: dict[int, int] = {}
        count = 0
        for request, _ in zip(self.requests(), range(100_000), strict=False):
            count += 1
            prompts[request.prompt] = prompts.get(request.prompt, 0) + 1
            outputs[request.output] = outputs.get(request.output, 0) + 1
        if not count:
            raise SimulationError(f"{self.path} holds no request")
        return Lengths(
            Contexts(tuple((float(n), times / count) for n, times in sorted(prompts.items()))),
            Contexts(tuple((float(n), times / count) for n, times in sorted(outputs.items()))),
        )


Arrivals = ClosedLoop | OpenLoop | Trace

_EXAMPLE = '{"timestamp": 27482, "input_length": 6955, "output_length": 52}'


def parse_arrivals(text: str, capacity: int) -> Arrivals:
    """Read `closed`, `closed:6144`, `poisson:120`, `constant:120`, or the path of a trace.

    Args:
        text: what the user wrote.
        capacity: requests that `closed` alone keeps under way.

    Raises:
        SimulationError: it is none of these.
    """
    kind, _, value = text.strip().partition(":")
    kind = kind.lower()
    if kind == "closed":
        try:
            return ClosedLoop(int(value) if value else capacity)
        except ValueError:
            raise SimulationError(f"--arrivals {text[:60]!r}: {value[:40]!r} is no whole number") from None
    if kind in ("poisson", "constant"):
        try:
            rate = float(value)
        except ValueError:
            rate = math.nan
        if not math.isfinite(rate):
            raise SimulationError(f"--arrivals {text[:60]!r} needs requests a second, like {kind}:120")
        return OpenLoop(rate, random=kind == "poisson")
    if Path(text).is_file():
        return Trace(Path(text))
    raise SimulationError(
        f"--arrivals {text[:60]!r} is no file: write closed:6144 (always so many under way), poisson:120 or "
        "constant:120 (requests a second), or the path of a JSONL trace"
    )


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise SimulationError(f"{path}, line {number}: longer than {MAX_LINE_BYTES:,} bytes")
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except (ValueError, RecursionError):
                        raise SimulationError(f"{path}, line {number}: not JSON") from None
    except OSError as error:
        raise SimulationError(f"{path} cannot be read: {error.strerror}") from error


def _arrival(line: dict[str, Any], where: str) -> float:
    """Seconds: `arrival` in seconds, or `timestamp` in milliseconds as published traces have it."""
    for name, unit in (("arrival", 1.0), ("timestamp", 1e-3)):
        value = line.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e15:
            raise SimulationError(f"{where}: {name} must be a number of at least 0, not {value!r:.40}")
        return value * unit
    raise SimulationError(f"{where}: arrival (seconds) or timestamp (milliseconds) is missing")


def _tokens(line: dict[str, Any], where: str, *names: str) -> int:
    for name in names:
        value = line.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_TOKENS:
            raise SimulationError(f"{where}: {name} must be a whole number from 1, not {value!r:.40}")
        return value
    raise SimulationError(f"{where}: {' or '.join(names)} is missing")

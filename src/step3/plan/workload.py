"""How long the contexts are while tokens are decoded: one length, a distribution, or a trace."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from step3.plan.errors import WorkloadError

MAX_CONTEXT = 1 << 30
MAX_TRACE_LINES = 1_000_000
MAX_LINE_BYTES = 1 << 16
_QUANTILES = 256

_LENGTH = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([km]?)", re.IGNORECASE)
_CALL = re.compile(r"(uniform|lognormal)\(([^,()]{1,20}),([^,()]{1,20})\)", re.IGNORECASE)
_FORMS = "write 8K, 4K:0.5,32K:0.5, uniform(1K,16K), lognormal(8K,0.7), or the path of a JSONL trace"


@dataclass(frozen=True)
class Contexts:
    """Context lengths of the sequences in decoding, each with its share of the decoded tokens."""

    lengths: tuple[tuple[float, float], ...]
    """(tokens behind the decoded one, share); shares add to 1."""

    @classmethod
    def fixed(cls, length: float) -> "Contexts":
        """Every sequence of one length."""
        return cls(((length, 1.0),))

    @property
    def mean(self) -> float:
        """Mean context in tokens."""
        return self.mean_seen(None)

    def mean_seen(self, window: int | None) -> float:
        """Mean tokens that a query attends to in a layer that sees `window` tokens at most."""
        if window is None:
            return sum(length * share for length, share in self.lengths)
        return sum(min(length, window) * share for length, share in self.lengths)

    @property
    def longest(self) -> float:
        """The longest context."""
        return max(length for length, _ in self.lengths)

    def scaled(self, factor: float) -> "Contexts":
        """Every context times `factor`."""
        return Contexts(tuple((length * factor, share) for length, share in self.lengths))


def parse_length(text: str) -> float:
    """`8192`, `8K` (8192), `1M` (1048576) in tokens.

    Raises:
        WorkloadError: it is no length from 1 to 2**30.
    """
    match = _LENGTH.fullmatch(text.strip())
    length = float(match[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20}[match[2].lower()] if match else 0
    if not 1 <= length <= MAX_CONTEXT:
        raise WorkloadError(f"{text.strip()[:60]!r} is not a context length: {_FORMS}")
    return length


def parse_contexts(text: str) -> Contexts:
    """Read `--context`: a length, weighted lengths, a distribution, or a trace's path.

    `lognormal(8K,0.7)` has median 8K and a standard deviation of 0.7 in the logarithm.

    Raises:
        WorkloadError: it is none of these.
    """
    text = text.strip()
    if call := _CALL.fullmatch(text):
        return _distribution(call[1].lower(), call[2], call[3])
    if ":" in text and _LENGTH.match(text):
        return _weighted(text)
    if _LENGTH.fullmatch(text):
        return Contexts.fixed(parse_length(text))
    if Path(text).is_file():
        return read_trace(Path(text))
    raise WorkloadError(f"{text[:60]!r} is no context length and no file: {_FORMS}")


def _distribution(kind: str, first: str, second: str) -> Contexts:
    middles = [(i + 0.5) / _QUANTILES for i in range(_QUANTILES)]
    if kind == "uniform":
        low, high = parse_length(first), parse_length(second)
        if low > high:
            raise WorkloadError(f"uniform({first},{second}) runs backwards")
        return Contexts(tuple((low + (high - low) * p, 1 / _QUANTILES) for p in middles))
    try:
        sigma = float(second)
    except ValueError:
        sigma = math.nan
    if not 0 < sigma <= 3:
        raise WorkloadError(
            f"lognormal's second number must be above 0 and at most 3, not {second.strip()!r}"
        )
    median = parse_length(first)
    return Contexts(
        tuple((median * math.exp(sigma * NormalDist().inv_cdf(p)), 1 / _QUANTILES) for p in middles)
    )


def _weighted(text: str) -> Contexts:
    pairs = []
    for part in text.split(","):
        length, _, weight = part.partition(":")
        try:
            share = float(weight.rstrip("% ")) if weight.strip() else math.nan
        except ValueError:
            share = math.nan
        if not 0 < share < math.inf:
            raise WorkloadError(f"{part.strip()[:60]!r} needs a weight above 0, like 4K:0.5")
        pairs.append((parse_length(length), share))
    total = sum(share for _, share in pairs)
    return Contexts(tuple((length, share / total) for length, share in pairs))


def read_trace(path: Path) -> Contexts:
    """The contexts that a JSONL trace decodes at.

    Each line is an object with `prompt_tokens` and `output_tokens` (or `input_length` and
    `output_length`), or with `context` alone. A request's decoding counts by its output tokens, at the
    prompt and half of them, halves of the output apart.

    Raises:
        WorkloadError: the file cannot be read, has no request, or a line is wrong (its number is named).
    """
    shares: dict[int, tuple[float, float]] = {}
    for number, line in _trace_lines(path):
        for context, tokens in _decoded(line, f"{path}, line {number}"):
            bucket = round(math.log(max(context, 1.0)) * 25)
            total, weighted = shares.get(bucket, (0.0, 0.0))
            shares[bucket] = (total + tokens, weighted + context * tokens)
    decoded = sum(total for total, _ in shares.values())
    if not decoded:
        raise WorkloadError(f"{path} holds no request that decodes anything")
    merged = (shares[bucket] for bucket in sorted(shares))
    return Contexts(tuple((weighted / total, total / decoded) for total, weighted in merged if total))


def _trace_lines(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with path.open("rb") as file:
            for number in range(1, MAX_TRACE_LINES + 2):
                line = file.readline(MAX_LINE_BYTES + 1)
                if not line:
                    return
                if number > MAX_TRACE_LINES or len(line) > MAX_LINE_BYTES:
                    raise WorkloadError(f"{path}, line {number}: more than a trace may hold")
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except (ValueError, RecursionError):
                        raise WorkloadError(f"{path}, line {number}: not JSON") from None
    except OSError as error:
        raise WorkloadError(f"{path} cannot be read: {error.strerror}") from error


def _decoded(line: Any, where: str) -> Iterable[tuple[float, float]]:
    """(context, tokens decoded at about it) of one request."""
    if not isinstance(line, dict):
        raise WorkloadError(f"{where}: expected an object")

    def count(*names: str, least: int) -> float:
        for name in names:
            value = line.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_CONTEXT:
                raise WorkloadError(f"{where}: {name} must be a whole number from {least}, not {value!r:.40}")
            return float(value)
        raise WorkloadError(f"{where}: {' or '.join(names)} is missing")

    if "context" in line:
        return [(count("context", least=1), 1.0)]
    prompt = count("prompt_tokens", "input_length", least=0)
    output = count("output_tokens", "output_length", least=0)
    return [(prompt + output / 4, output / 2), (prompt + 3 * output / 4, output / 2)]

"""Stage times that were measured on a machine, from a YAML file.

```yaml
kinds:                       # layers that take the same times, in the order of the model
  - layers: 61
    attention:               # one layer on one attention card: a row of microseconds for each `sequences`
      sequences: [1, 64, 256]
      contexts: [1024, 8192]
      us: [[20, 24], [60, 190], [180, 700]]
    out:  {sequences: [1, 256], us: [15, 120]}       # of one attention card, to the FFN
    ffn:  {sequences: [1, 512, 2048], us: [80, 90, 160]}   # of one call, all attention cards together
    back: {sequences: [1, 256], us: [15, 230]}
head: {sequences: [1, 256], us: [40, 400]}           # once a step
prefill_us: 0.0004           # optional: a layer's core, for each prompt token and token that it attends to
host:                        # optional: all instances share a host's cores, and `ffn` is of one instance
  cores: 2
  bound: true                # optional: instance n, attention first, has core n modulo their number
  attention_contention: 0.2  # optional: attention takes so much longer while all other cores are at work
  ffn_contention: 0.1        # optional: the same of an FFN instance
  wake_us: 60                # optional: until a sleeping instance begins
  front_us: 100              # optional: for each token, in front of all instances
```

Between the points times are linear; beyond the last they go on as between the last two; before the first
they stay.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from step3.plan.catalogue import load_yaml
from step3.plan.fields import Fields
from step3.plan.simulate.cores import Host
from step3.plan.simulate.errors import SimulationError
from step3.plan.workload import Contexts

MAX_LAYERS = 10_000
MAX_POINTS = 10_000


@dataclass(frozen=True)
class Line:
    """Seconds over a size, by points."""

    sizes: tuple[float, ...]
    """Rising."""
    seconds: tuple[float, ...]

    def at(self, size: float) -> float:
        """Seconds at a size."""
        sizes, seconds = self.sizes, self.seconds
        if size <= sizes[0] or len(sizes) == 1:
            return seconds[0]
        right = min(bisect_right(sizes, size), len(sizes) - 1)
        slope = (seconds[right] - seconds[right - 1]) / (sizes[right] - sizes[right - 1])
        return max(seconds[right - 1] + slope * (size - sizes[right - 1]), 0.0)


@dataclass(frozen=True)
class Surface:
    """Seconds over contexts, a line for each of some numbers of sequences."""

    sequences: tuple[float, ...]
    rows: tuple[Line, ...]

    def at(self, sequences: float, context: float) -> float:
        """Seconds for so many sequences at a context."""
        return Line(self.sequences, tuple(row.at(context) for row in self.rows)).at(sequences)


@dataclass(frozen=True)
class LayerKind:
    """The times of layers that are alike."""

    layers: int
    attention: Surface
    out: Line
    ffn: Line
    back: Line


class MeasuredTimes:
    """A time model from measurements; see the module for the file's form.

    Args:
        kinds: in the model's order.
        head: once a step.
        prefill: seconds of one layer's core for each prompt token and each token that it attends to.
        host: whose cores the instances share; None where each has its own.
    """

    def __init__(
        self, kinds: Sequence[LayerKind], head: Line, prefill: float = 0.0, host: Host | None = None
    ) -> None:
        firsts: list[int] = []
        for kind in kinds:
            firsts += [len(firsts)] * kind.layers
        self.layer_kinds: Sequence[int] = tuple(firsts)
        self._kinds = dict(zip(dict.fromkeys(firsts), kinds, strict=True))
        self._head, self._prefill = head, prefill
        self.host = host

    def attention(self, layer: int, sequences: float, contexts: Contexts) -> float:
        """Seconds on an attention card."""
        return self._kind(layer).attention.at(sequences, contexts.mean) if sequences else 0.0

    def out(self, layer: int, sequences: float, all_sequences: float) -> float:
        """Seconds to the FFN, however many others send."""
        return self._kind(layer).out.at(sequences)

    def ffn(self, layer: int, all_sequences: float) -> float:
        """Seconds of one FFN call."""
        return self._kind(layer).ffn.at(all_sequences)

    def back(self, layer: int, sequences: float, all_sequences: float) -> float:
        """Seconds from the FFN."""
        return self._kind(layer).back.at(sequences)

    def head(self, sequences: float) -> float:
        """Seconds of the output head and sampling."""
        return self._head.at(sequences)

    def prefill_core(self, layer: int, tokens: int, before: float) -> float:
        """Seconds of the attention's core for prompt tokens."""
        return self._prefill * tokens * (before + tokens / 2)

    def _kind(self, layer: int) -> LayerKind:
        return self._kinds[self.layer_kinds[layer]]


def read_measured(path: Path) -> MeasuredTimes:
    """Read measured stage times.

    Raises:
        SimulationError: the file cannot be read, or a value in it is missing or wrong; it is named.
    """
    file = load_yaml(path, SimulationError)
    if unknown := set(map(str, file.values)) - {"kinds", "head", "prefill_us", "host"}:
        raise file.fail(f"{sorted(unknown)[0]:.60} is unknown; the names are kinds, head, prefill_us, host")
    kinds = [
        _kind(Fields(values, f"{path}, kind {number}", SimulationError))
        for number, values in enumerate(file.items("kinds", 1), 1)
    ]
    if sum(kind.layers for kind in kinds) > MAX_LAYERS:
        raise file.fail(f"more than {MAX_LAYERS:,} layers")
    host = _host(file.inner("host")) if file.has("host") else None
    return MeasuredTimes(kinds, _line(file.inner("head")), file.number("prefill_us", 0.0) * 1e-6, host)


def _host(values: Fields) -> Host:
    names = ("attention_contention", "ffn_contention", "wake_us", "front_us")
    if unknown := set(map(str, values.values)) - {"cores", "bound", *names}:
        names_known = ", ".join(("cores", "bound", *names))
        raise values.fail(f"{sorted(unknown)[0]:.60} is unknown; the names are {names_known}")
    attention, ffn, wake, front = (values.number(name, 0.0) for name in names)
    is_bound = values.flag("bound", True)
    return Host(values.integer("cores"), is_bound, attention, ffn, wake * 1e-6, front * 1e-6)


def _kind(values: Fields) -> LayerKind:
    layers = values.integer("layers")
    if layers > MAX_LAYERS:
        raise values.fail(f"layers must be at most {MAX_LAYERS:,}")
    surface = values.inner("attention")
    sequences, contexts = _rising(surface, "sequences"), _rising(surface, "contexts")
    rows = surface.items("us")
    if len(rows) != len(sequences):
        raise surface.fail(f"us has {len(rows)} rows for {len(sequences)} numbers of sequences")
    lines = []
    for row in rows:
        if not isinstance(row, list) or len(row) != len(contexts):
            raise surface.fail(f"each row of us needs a number for each of the {len(contexts)} contexts")
        lines.append(Line(contexts, tuple(surface.as_number("us", each) * 1e-6 for each in row)))
    return LayerKind(
        layers,
        Surface(sequences, tuple(lines)),
        _line(values.inner("out")),
        _line(values.inner("ffn")),
        _line(values.inner("back")),
    )


def _line(values: Fields) -> Line:
    sizes, seconds = _rising(values, "sequences"), values.items("us")
    if len(seconds) != len(sizes):
        raise values.fail(f"us has {len(seconds)} numbers for {len(sizes)} of sequences")
    return Line(sizes, tuple(values.as_number("us", each) * 1e-6 for each in seconds))


def _rising(values: Fields, name: str) -> tuple[float, ...]:
    numbers = [values.as_number(name, each) for each in values.items(name, 1)]
    if not 1 <= len(numbers) <= MAX_POINTS or any(a >= b for a, b in pairwise(numbers)):
        raise values.fail(f"{name} must be rising numbers, from 1 to {MAX_POINTS:,} of them")
    return tuple(numbers)

"""Accelerators as the planner knows them: one card's price, peaks, memory and links."""

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from step3.plan.catalogue import load_yaml, packaged
from step3.plan.efficiency import Efficiencies, efficiencies_from
from step3.plan.errors import HardwareError
from step3.plan.fields import Fields

ASSUMED = "assumed"
"""The `price_source` of a price that nobody vouches for."""

_KEYS = {
    "usd_per_hour",
    "price_source",
    "tflops",
    "memory_gb_s",
    "memory_gib",
    "network_gbit_s",
    "network_latency_us",
    "node_gb_s",
    "cards_per_node",
    "efficiency",
    "measured",
}


@dataclass(frozen=True)
class Hardware:
    """One card. Bandwidths are bytes a second, links each way."""

    name: str
    usd_per_hour: float
    bf16_flops: float
    fp8_flops: float | None
    int8_flops: float | None
    fp4_flops: float | None
    memory_bandwidth: float
    memory_bytes: float
    network_bandwidth: float
    node_bandwidth: float
    cards_per_node: int
    network_latency: float = 0.0
    """Seconds that a message takes beyond its bytes; 0 where nobody measured it."""
    efficiencies: Efficiencies = field(default_factory=Efficiencies)
    price_source: str = "given"

    @property
    def usd_per_second(self) -> float:
        """Price of one card and second."""
        return self.usd_per_hour / 3600

    def peak(self, kind: str) -> float:
        """Peak FLOP/s with operands of this type; what the card lacks runs in bf16."""
        peaks = {"fp8": self.fp8_flops, "int8": self.int8_flops, "fp4": self.fp4_flops}
        return peaks.get(kind) or self.bf16_flops

    @property
    def paper_peak(self) -> float:
        """The peak that the paper prices work with: fp8 where there is one, bf16 elsewhere (section 4.1)."""
        return self.fp8_flops or self.bf16_flops


class HardwareCatalogue:
    """The cards that can be named, packaged ones and the user's.

    Args:
        files: YAML files of the packaged catalogue's form; their entries replace or join its own.
        prices: USD an hour by name, instead of the catalogue's.

    Raises:
        HardwareError: a file, an entry or a price is wrong.
    """

    def __init__(self, files: Iterable[Path] = (), prices: Mapping[str, float] | None = None) -> None:
        self._cards: dict[str, Hardware] = {}
        for path in (packaged("hardware.yaml"), *files):
            entries = load_yaml(path, HardwareError)
            for name, values in entries.values.items():
                self._cards[str(name)] = hardware_from(str(name), values, str(path.name))
        for name, price in (prices or {}).items():
            if not price >= 0:
                raise HardwareError(f"the price of {name} cannot be {price} USD an hour")
            card = self[name]
            self._cards[card.name] = replace(card, usd_per_hour=price, price_source="given")

    def __getitem__(self, name: str) -> Hardware:
        """The card of that name, in any case.

        Raises:
            HardwareError: there is none.
        """
        for known, card in self._cards.items():
            if known.lower() == name.strip().lower():
                return card
        raise HardwareError(
            f"hardware {name[:60]!r} is unknown: choose from {', '.join(self._cards)}, or add your own file"
        )

    @property
    def names(self) -> list[str]:
        """All names, in the catalogue's order."""
        return list(self._cards)

    def choose(self, names: str) -> list[Hardware]:
        """The cards of a list of names with commas between, each once.

        Raises:
            HardwareError: a name is unknown, or there is none.
        """
        chosen = {card.name: card for card in (self[name] for name in names.split(",") if name.strip())}
        if not chosen:
            raise HardwareError(f"name at least one card, of {', '.join(self._cards)}")
        return list(chosen.values())

    def changed(self, cards: Mapping[str, Hardware]) -> "HardwareCatalogue":
        """A copy in which these cards replace those of their names."""
        changed = copy.copy(self)
        changed._cards = {**self._cards, **cards}
        return changed


def parse_prices(texts: Iterable[str]) -> dict[str, float]:
    """Read `H800=1.6`.

    Raises:
        HardwareError: a text is not a name and a number of at least 0.
    """
    prices = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            price = float(value)
        except ValueError:
            price = math.nan
        if not name.strip() or not 0 <= price < math.inf:
            raise HardwareError(f"{text[:60]!r} is not a price: write NAME=USD an hour, like H800=1.6")
        prices[name.strip()] = price
    return prices


def hardware_from(name: str, values: Any, source: str) -> Hardware:
    """One entry of a catalogue file.

    Raises:
        HardwareError: a value is missing, unknown or impossible.
    """
    entry = Fields(values, f"{source}, {name}", HardwareError)
    if unknown := set(map(str, entry.values)) - _KEYS:
        raise entry.fail(f"{sorted(unknown)[0]:.60} is unknown; the names are {', '.join(sorted(_KEYS))}")
    peaks = entry.inner("tflops")
    if unknown := set(map(str, peaks.values)) - {"bf16", "fp8", "int8", "fp4"}:
        raise peaks.fail(f"{sorted(unknown)[0]:.60} is none of bf16, fp8, int8, fp4")

    def positive(fields: Fields, key: str, unit: float) -> float:
        value = fields.number(key) * unit
        if not value:
            raise fields.fail(f"{key} must be above 0")
        return value

    def optional_peak(kind: str) -> float | None:
        return positive(peaks, kind, 1e12) if peaks.has(kind) else None

    return Hardware(
        name=name,
        usd_per_hour=entry.number("usd_per_hour"),
        bf16_flops=positive(peaks, "bf16", 1e12),
        fp8_flops=optional_peak("fp8"),
        int8_flops=optional_peak("int8"),
        fp4_flops=optional_peak("fp4"),
        memory_bandwidth=positive(entry, "memory_gb_s", 1e9),
        memory_bytes=positive(entry, "memory_gib", 2**30),
        network_bandwidth=positive(entry, "network_gbit_s", 1e9 / 8),
        node_bandwidth=positive(entry, "node_gb_s", 1e9),
        cards_per_node=entry.integer("cards_per_node"),
        network_latency=entry.number("network_latency_us", 0.0) * 1e-6,
        efficiencies=efficiencies_from(entry.inner("efficiency"))
        if entry.has("efficiency")
        else Efficiencies(),
        price_source=entry.text("price_source", "given"),
    )

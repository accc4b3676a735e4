"""Scenarios with times that a test can reckon with."""

from dataclasses import dataclass
from typing import Any

from step3.plan.simulate import Cards, Scenario
from step3.plan.simulate.requests import ClosedLoop, Lengths
from step3.plan.topology import parse_topology
from step3.plan.workload import Contexts


@dataclass(frozen=True)
class AffineTimes:
    """Every layer alike; each stage takes a fixed time and so much for each sequence."""

    attention_s: float = 1e-3
    out_s: float = 0.5e-3
    ffn_s: float = 1e-3
    back_s: float = 0.5e-3
    head_s: float = 0.0
    layers: int = 5
    ffn_per_sequence: float = 0.0
    attention_per_token: float = 0.0

    @property
    def layer_kinds(self) -> tuple[int, ...]:
        return (0,) * self.layers

    def attention(self, layer: int, sequences: float, contexts: Contexts) -> float:
        return self.attention_s + self.attention_per_token * sequences * contexts.mean

    def out(self, layer: int, sequences: float, all_sequences: float) -> float:
        return self.out_s

    def ffn(self, layer: int, all_sequences: float) -> float:
        return self.ffn_s + self.ffn_per_sequence * all_sequences

    def back(self, layer: int, sequences: float, all_sequences: float) -> float:
        return self.back_s

    def head(self, sequences: float) -> float:
        return self.head_s


def no_prefill(layer: int, tokens: int, before: float) -> float:
    """A prompt's core that takes no time."""
    return 0.0


def lengths(prompt: float = 100, output: float = 20) -> Lengths:
    return Lengths(Contexts.fixed(prompt), Contexts.fixed(output))


def scenario(topology: str = "1A1F", times: Any = None, **changes: Any) -> Scenario:
    """One card an instance, four seats a lane, all taken; one simulated second is counted."""
    parsed = parse_topology(topology)
    cards = Cards(1, 0 if parsed.is_monolith else 1)
    values: dict[str, Any] = {
        "topology": parsed,
        "cards": cards,
        "times": times or AffineTimes(),
        "prefill_core": no_prefill,
        "lengths": lengths(),
        "lanes": 3,
        "seats": 4,
        "warmup": 0.2,
        "duration": 1.0,
        **changes,
    }
    if "arrivals" not in values:
        cards = values["cards"].attention * parsed.attention
        values["arrivals"] = ClosedLoop(values["lanes"] * values["seats"] * cards)
    return Scenario(**values)

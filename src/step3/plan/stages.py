"""How long one call takes in each stage of a deployment, whoever says so: a roofline or a measurement.

The closed form (`step3.plan.pipeline`) and a simulation work from the same times.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from step3.plan.workload import Contexts


@dataclass(frozen=True)
class LayerTimes:
    """Seconds that one layer of one micro-batch spends in each stage."""

    attention: float
    """Attention, router and all else on the attention side."""
    out: float
    """From the attention cards into the FFN cards."""
    ffn: float
    back: float
    """Partial sums from the FFN cards into the attention cards."""

    @property
    def total(self) -> float:
        """Seconds from the layer's start to its end, if nothing waits."""
        return self.attention + self.out + self.ffn + self.back


@dataclass(frozen=True)
class StageTimes:
    """Seconds of one step of one micro-batch."""

    layers: tuple[LayerTimes, ...]
    """In the order of the layers."""
    head: float = 0.0
    """Once a step, on the attention side: output head and sampling."""

    @cached_property
    def attention(self) -> float:
        """Seconds that an attention card is busy, the head included."""
        return sum(layer.attention for layer in self.layers) + self.head

    @cached_property
    def out(self) -> float:
        """Seconds on the way to the FFN."""
        return sum(layer.out for layer in self.layers)

    @cached_property
    def ffn(self) -> float:
        """Seconds that an FFN card is busy."""
        return sum(layer.ffn for layer in self.layers)

    @cached_property
    def back(self) -> float:
        """Seconds on the way back."""
        return sum(layer.back for layer in self.layers)

    @property
    def chain(self) -> float:
        """Seconds of the step if nothing waits: every stage of every layer after the other."""
        return self.attention + self.out + self.ffn + self.back


class TimeModel(Protocol):
    """Gives the time of each call in a deployment.

    `sequences` are those in one micro-batch of one attention card; `all_sequences` those of that
    micro-batch over all attention instances, which one call of the FFN serves together.
    """

    @property
    def layer_kinds(self) -> Sequence[int]:
        """For each layer of a step, the first layer that takes the same times."""
        ...

    def attention(self, layer: int, sequences: float, contexts: Contexts) -> float:
        """Seconds on an attention card."""
        ...

    def out(self, layer: int, sequences: float, all_sequences: float) -> float:
        """Seconds to the FFN."""
        ...

    def ffn(self, layer: int, all_sequences: float) -> float:
        """Seconds on an FFN card."""
        ...

    def back(self, layer: int, sequences: float, all_sequences: float) -> float:
        """Seconds from the FFN."""
        ...

    def head(self, sequences: float) -> float:
        """Seconds of the output head and sampling."""
        ...


def stage_times(model: TimeModel, sequences: float, all_sequences: float, contexts: Contexts) -> StageTimes:
    """The times of a whole step.

    Args:
        model: gives the time of each call.
        sequences: sequences in one micro-batch of one attention card.
        all_sequences: sequences of one micro-batch over all attention cards.
        contexts: their context lengths.
    """
    kinds = {
        layer: LayerTimes(
            model.attention(layer, sequences, contexts),
            model.out(layer, sequences, all_sequences),
            model.ffn(layer, all_sequences),
            model.back(layer, sequences, all_sequences),
        )
        for layer in set(model.layer_kinds)
    }
    return StageTimes(tuple(kinds[layer] for layer in model.layer_kinds), model.head(sequences))

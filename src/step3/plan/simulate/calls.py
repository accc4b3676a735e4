"""Seconds of every call, asked of the time model once and then looked up."""

import math
from collections.abc import Callable, Sequence

from step3.plan.stages import TimeModel
from step3.plan.workload import Contexts

PrefillCore = Callable[[int, int, float], float]
"""(layer, prompt tokens of one sequence, tokens before them) → seconds of the attention's core."""

NODES_PER_DOUBLING = 4
"""Attention is asked for at so many contexts between n and 2n; between them it is taken as linear."""

_MOST_KEPT = 1 << 16


class CallTimes:
    """A time model by kinds of layers, with a memory.

    Times of the attention are interpolated over the mean context. That is exact where the model is linear
    in it, as a roofline is but for the one span in which it turns from compute to bandwidth.

    Args:
        model: gives the times.
        contexts: how the contexts of a batch spread; scaled to a batch's mean before the model sees it.
        prefill_core: gives the time of the attention's core for prompt tokens.
        width: tokens that a step computes for each sequence in decoding (1 without drafts).

    Attributes:
        kinds: for each layer of a step, which kind it is, from 0.
    """

    def __init__(
        self, model: TimeModel, contexts: Contexts, prefill_core: PrefillCore, width: int = 1
    ) -> None:
        self._model, self._contexts, self._prefill_core = model, contexts, prefill_core
        self.width = width
        first = list(dict.fromkeys(model.layer_kinds))
        self._layers = first
        self.kinds = tuple(first.index(layer) for layer in model.layer_kinds)
        self._kept: dict[tuple[object, ...], float] = {}

    def attention(
        self, sequences: int, tokens: float, chunks: Sequence[tuple[int, float]] = ()
    ) -> list[float]:
        """Seconds on one attention card by kind of layer.

        Args:
            sequences: in decoding.
            tokens: their contexts added up.
            chunks: of each prompt, (tokens to compute, tokens before them).
        """
        prompt = sum(count for count, _ in chunks)
        rows = sequences + prompt / self.width
        if not rows:
            return [0.0] * len(self._layers)
        seconds = [self._attention(kind, rows, tokens / rows) for kind in range(len(self._layers))]
        for kind, layer in enumerate(self._layers) if chunks else ():
            seconds[kind] += sum(self._prefill_core(layer, count, before) for count, before in chunks)
        return seconds

    def _attention(self, kind: int, sequences: float, context: float) -> float:
        place = math.log2(context) * NODES_PER_DOUBLING if context > 1 else -1
        below = math.floor(place)
        low = 2 ** (below / NODES_PER_DOUBLING) if below >= 0 else 0.0
        high = 2 ** ((below + 1) / NODES_PER_DOUBLING) if below >= 0 else 1.0
        at_low = self._at_node(kind, sequences, below, low)
        at_high = self._at_node(kind, sequences, below + 1, high)
        return at_low + (at_high - at_low) * (context - low) / (high - low)

    def _at_node(self, kind: int, sequences: float, node: int, context: float) -> float:
        key = (0, kind, sequences, node)
        seconds = self._kept.get(key)
        if seconds is None:
            mean = self._contexts.mean
            spread = self._contexts.scaled(context / mean) if context and mean else Contexts.fixed(context)
            seconds = self._keep(key, self._model.attention(self._layers[kind], sequences, spread))
        return seconds

    def head(self, sequences: float) -> float:
        """Seconds of the output head for the sequences of one card."""
        key = (1, sequences)
        seconds = self._kept.get(key)
        return self._keep(key, self._model.head(sequences)) if seconds is None else seconds

    def ffn(self, kind: int, total: float) -> float:
        """Seconds of an FFN call for `total` sequences."""
        key = (2, kind, total)
        seconds = self._kept.get(key)
        return self._keep(key, self._model.ffn(self._layers[kind], total)) if seconds is None else seconds

    def out(self, kind: int, sequences: float, total: float) -> float:
        """Seconds to the FFN for a card with `sequences`, while `total` are on their way together."""
        key = (3, kind, sequences, total)
        seconds = self._kept.get(key)
        if seconds is None:
            seconds = self._keep(key, self._model.out(self._layers[kind], sequences, total))
        return seconds

    def back(self, kind: int, sequences: float, total: float) -> float:
        """Seconds from the FFN, likewise."""
        key = (4, kind, sequences, total)
        seconds = self._kept.get(key)
        if seconds is None:
            seconds = self._keep(key, self._model.back(self._layers[kind], sequences, total))
        return seconds

    def out_share(self, kind: int, total: float) -> float:
        """Seconds that `total` sequences occupy the FFN side's links: what twice as many take longer."""
        key = (5, kind, total)
        seconds = self._kept.get(key)
        if seconds is None:
            grown = self.out(kind, 0.0, 2 * total) - self.out(kind, 0.0, total)
            seconds = self._keep(key, max(grown, 0.0))
        return seconds

    def back_share(self, kind: int, total: float) -> float:
        """The same on the way back."""
        key = (6, kind, total)
        seconds = self._kept.get(key)
        if seconds is None:
            grown = self.back(kind, 0.0, 2 * total) - self.back(kind, 0.0, total)
            seconds = self._keep(key, max(grown, 0.0))
        return seconds

    def _keep(self, key: tuple[object, ...], seconds: float) -> float:
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        self._kept[key] = seconds
        return seconds

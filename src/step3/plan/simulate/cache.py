"""How much KV cache an attention card has room for."""

import math
from dataclasses import dataclass

from step3.plan.deployment import Deployment
from step3.plan.memory import memory_fit
from step3.plan.precision import Precision
from step3.plan.shape import ModelShape, kept_bytes
from step3.plan.simulate.errors import SimulationError


@dataclass(frozen=True)
class CacheRoom:
    """What a sequence takes, and what a card offers; all bytes are cache, weights are paid for.

    A sequence of n tokens takes `fixed + per_token * n` bytes.

    Raises:
        SimulationError: a value is negative or not a number.
    """

    room: float = math.inf
    """Bytes on one attention card."""
    per_token: float = 1.0
    fixed: float = 0.0
    """Bytes of a sequence whatever its length: full windows, states of linear attention."""

    def __post_init__(self) -> None:
        for name in ("room", "per_token", "fixed"):
            if not getattr(self, name) >= 0:
                raise SimulationError(f"the cache's {name} must be at least 0, not {getattr(self, name)}")

    def taken(self, sequences: float, tokens: float) -> float:
        """Bytes of so many sequences with so many tokens in all."""
        return self.fixed * sequences + self.per_token * tokens


def cache_room(
    model: ModelShape,
    deployment: Deployment,
    precision: Precision,
    context: float,
    drafts: int = 0,
    share: float = 0.9,
) -> CacheRoom:
    """The room of a card of a deployment.

    Exact for layers that keep the whole context. Where some keep a window, what a sequence takes is taken
    as linear between half of `context` and one and a half times.

    Raises:
        SimulationError: the weights leave no room.
    """
    from step3.plan.workload import Contexts

    fit = memory_fit(model, deployment, precision, Contexts.fixed(context), drafts, share)
    room = fit.attention_room - fit.attention_weights
    if room <= 0:
        raise SimulationError(
            f"the weights on an attention card, {fit.attention_weights / 2**30:,.1f} GiB, leave no room for "
            f"caches on {deployment.attention.name}, which offers {fit.attention_room / 2**30:,.1f}"
        )
    low, high = 0.5 * context, 1.5 * context
    at_low, at_high = kept_bytes(model, low, precision), kept_bytes(model, high, precision)
    per_token = (at_high - at_low) / (high - low)
    fixed = max(at_low - per_token * low, 0.0)
    draft_layers = 1 + drafts / len(model.layers)
    return CacheRoom(room, per_token * draft_layers, fixed * draft_layers)

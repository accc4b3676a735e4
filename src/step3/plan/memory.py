"""What a card must hold, and how many sequences fit beside it."""

from dataclasses import dataclass

from step3.plan.attention import GroupedAttention
from step3.plan.deployment import Deployment
from step3.plan.ffn import ffn_parameters
from step3.plan.precision import BYTES, Precision
from step3.plan.shape import Layer, ModelShape, cache_bytes
from step3.plan.workload import Contexts


@dataclass(frozen=True)
class MemoryFit:
    """Bytes on the cards of one deployment."""

    attention_weights: float
    """On each attention card, embedding, head and vision tower included; in a monolith the FFN too."""
    ffn_weights: float
    """On each FFN card, on the fullest one."""
    sequence: float
    """Cache of one sequence at the mean context."""
    attention_room: float
    """What an attention card offers."""
    ffn_room: float
    """What an FFN card offers; 0 in the monolith."""

    @property
    def sequences(self) -> int:
        """Sequences that fit on one attention card."""
        return max(int((self.attention_room - self.attention_weights) // self.sequence), 0)

    @property
    def ffn_fits(self) -> bool:
        """Whether the FFN cards hold their weights."""
        return self.ffn_weights <= self.ffn_room


def memory_fit(
    model: ModelShape,
    deployment: Deployment,
    precision: Precision,
    contexts: Contexts,
    drafts: int = 0,
    share: float = 0.9,
) -> MemoryFit:
    """What the cards hold.

    Args:
        model: the model.
        deployment: the cards.
        precision: types of the parts.
        contexts: of the sequences in decoding.
        drafts: draft layers beside the model's own.
        share: of a card's memory that weights and caches may take; the rest is for activations.
    """
    kinds = [*model.kinds, (model.layers[-1], drafts)]
    projections = sum(n * layer.attention.linear_parameters(model.hidden) for layer, n in kinds)
    routers = sum(n * layer.ffn.router_parameters(model.hidden) for layer, n in kinds)
    ends = model.head_parameters + model.embedding_parameters + model.vision_parameters
    on_attention = (
        projections * BYTES[precision.attention_weights]
        + routers * BYTES[precision.router]
        + ends * BYTES[precision.head]
    )
    on_ffn = (
        sum(n * _ffn_share(layer, model, deployment) for layer, n in kinds) * BYTES[precision.ffn_weights]
    )
    sequence = sum(n * _kept(layer, contexts, precision) for layer, n in kinds)
    room = share * deployment.attention.memory_bytes
    if deployment.is_monolith:
        return MemoryFit(on_attention + on_ffn, 0.0, sequence, room, 0.0)
    return MemoryFit(on_attention, on_ffn, sequence, room, share * deployment.ffn.memory_bytes)


def _kept(layer: Layer, contexts: Contexts, precision: Precision) -> float:
    attention = layer.attention
    seen = contexts.mean_seen(attention.window if isinstance(attention, GroupedAttention) else None)
    return cache_bytes(attention, attention.kept_elements(seen), precision)


def _ffn_share(layer: Layer, model: ModelShape, deployment: Deployment) -> float:
    parameters = deployment.uneven_share(layer.ffn) * ffn_parameters(layer.ffn, model.hidden)
    return parameters / deployment.weight_cards

"""A model's sizes, all that the planner knows of it, and what follows from them for one token."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from step3.plan.attention import Attention, Counting, LatentAttention, cache_part, read_elements
from step3.plan.ffn import FFN, ffn_flops, ffn_parameters
from step3.plan.precision import BYTES, Precision


@dataclass(frozen=True)
class Layer:
    """One decoder layer."""

    attention: Attention
    ffn: FFN


@dataclass(frozen=True)
class ModelShape:
    """A decoder's sizes."""

    name: str
    hidden: int
    vocabulary: int
    layers: tuple[Layer, ...]
    precision: Precision
    tied_embeddings: bool = False
    vision_parameters: int = 0
    draft_layers: int = 0
    """Layers for multi-token prediction that the checkpoint brings."""
    max_context: int | None = None
    stated_active_billions: float | None = None
    """Active parameters a token as the model's authors state them, in 1e9."""

    @cached_property
    def kinds(self) -> tuple[tuple[Layer, int], ...]:
        """Each different layer and how often it occurs."""
        return tuple(Counter(self.layers).items())

    @cached_property
    def first_alike(self) -> tuple[int, ...]:
        """For each layer, the first that is like it."""
        first: dict[Layer, int] = {}
        return tuple(first.setdefault(layer, number) for number, layer in enumerate(self.layers))

    @property
    def attention_parameters(self) -> int:
        """Weights of the attention's projections."""
        return sum(n * layer.attention.linear_parameters(self.hidden) for layer, n in self.kinds)

    @property
    def ffn_parameters(self) -> int:
        """Weights of dense FFNs, experts and shared experts."""
        return sum(n * ffn_parameters(layer.ffn, self.hidden) for layer, n in self.kinds)

    @property
    def router_parameters(self) -> int:
        """Weights of the routers."""
        return sum(n * layer.ffn.router_parameters(self.hidden) for layer, n in self.kinds)

    @property
    def head_parameters(self) -> int:
        """Weights of the output head, which every token passes."""
        return self.vocabulary * self.hidden

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding beyond the head's: none if they are tied."""
        return 0 if self.tied_embeddings else self.head_parameters

    @property
    def text_parameters(self) -> int:
        """All weights of the decoder; norms and biases, under 0.01 %, are left out."""
        parts = self.attention_parameters + self.ffn_parameters + self.router_parameters
        return parts + self.head_parameters + self.embedding_parameters

    @property
    def active_parameters(self) -> int:
        """Weights that one token multiplies by: all but the embedding and the experts not chosen."""
        active_ffn = sum(n * 3 * self.hidden * layer.ffn.active_intermediate for layer, n in self.kinds)
        return self.attention_parameters + active_ffn + self.router_parameters + self.head_parameters


@dataclass(frozen=True)
class TokenWork:
    """What one decoded token costs in work, over all layers."""

    kv_bytes: float
    """Cache and state moved, in bytes."""
    core_flops: float
    """Scores, weighted sums and state updates."""
    linear_flops: float
    """The attention's projections."""
    ffn_flops: float
    router_flops: float
    head_flops: float

    @property
    def intensity(self) -> float:
        """FLOPs of the attention's core for each byte of cache it reads."""
        return self.core_flops / self.kv_bytes


def token_work(
    model: ModelShape, context: float, counting: Counting, precision: Precision | None = None
) -> TokenWork:
    """The work of one token with `context` tokens behind it.

    The paper leaves router, norms, embedding and head out; they are counted under `EXACT`.
    """
    precision = precision or model.precision
    exact = counting is Counting.EXACT
    kv_bytes = core = 0.0
    for layer, n in model.kinds:
        kv_bytes += n * cache_bytes(layer.attention, read_elements(layer.attention, context), precision)
        core += n * layer.attention.core_flops(context, counting)
    return TokenWork(
        kv_bytes=kv_bytes,
        core_flops=core,
        linear_flops=2 * model.attention_parameters,
        ffn_flops=sum(n * ffn_flops(layer.ffn, model.hidden) for layer, n in model.kinds),
        router_flops=2 * model.router_parameters if exact else 0,
        head_flops=2 * model.head_parameters if exact else 0,
    )


def kept_bytes(model: ModelShape, context: float, precision: Precision) -> float:
    """Bytes of cache and state that one sequence of `context` tokens occupies."""
    return sum(
        n * cache_bytes(layer.attention, layer.attention.kept_elements(context), precision)
        for layer, n in model.kinds
    )


def cache_bytes(attention: Attention, elements: float, precision: Precision) -> float:
    """Bytes of so many elements of this layer's cache."""
    return elements * BYTES[getattr(precision, cache_part(attention))]


def effective_rank(attention: Attention) -> int:
    """Query heads times head dimension, the paper's measure of expressiveness (section 5.1)."""
    dim = attention.nope_dim if isinstance(attention, LatentAttention) else attention.head_dim
    return attention.query_heads * dim

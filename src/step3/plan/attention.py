"""What one attention layer reads, computes and keeps for each new token, by family.

Work is counted for one sequence and one decoded token with `context` tokens behind it, in elements and
FLOPs (a multiply and an add are two). Two ways of counting: `PAPER` follows the conventions of the
Step-3 system paper (arXiv 2507.19427, section 4), fitted constants included; `EXACT` counts the matrix
products that an implementation runs.
"""

from dataclasses import dataclass
from enum import Enum

FITTED_LIGHTNING_FLOPS_PER_STATE_ELEMENT = 10
"""Fitted to the paper's table 2, which prints no derivation; first principles give 5."""

LIGHTNING_FLOPS_PER_STATE_ELEMENT = 5
"""Decay (1), outer product (1), add (1), product with the query (2)."""


class Counting(Enum):
    """Whose rules count the work."""

    PAPER = "paper"
    EXACT = "exact"


@dataclass(frozen=True)
class GroupedAttention:
    """Softmax attention with grouped key and value heads (MHA, GQA, MQA), over all or the last tokens."""

    query_heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    """The most tokens a query sees: a sliding window's or a chunk's length; None is all."""
    gate_parameters_per_hidden: int = 0
    """Columns of an output gate's projection: 0 without one, `query_heads` for a gate a head."""

    def seen(self, context: float) -> float:
        """Tokens that a query attends to."""
        return context if self.window is None else min(context, self.window)

    def kept_elements(self, context: float) -> float:
        """Cache elements a sequence occupies."""
        return 2 * self.kv_heads * self.head_dim * self.seen(context)

    def core_flops(self, context: float, counting: Counting) -> float:
        """Scores and weighted sum."""
        return 4 * self.query_heads * self.head_dim * self.seen(context)

    def linear_parameters(self, hidden: int) -> int:
        """Weights of the projections."""
        query = self.query_heads * self.head_dim
        kv = 2 * self.kv_heads * self.head_dim
        return hidden * (query + kv + self.gate_parameters_per_hidden) + query * hidden


@dataclass(frozen=True)
class MultiMatrixAttention:
    """MFA: one key and one value head for all query heads, the query through a low-rank bottleneck."""

    query_heads: int
    head_dim: int
    query_rank: int

    def kept_elements(self, context: float) -> float:
        """Cache elements a sequence occupies."""
        return 2 * self.head_dim * context

    def core_flops(self, context: float, counting: Counting) -> float:
        """Scores and weighted sum."""
        return 4 * self.query_heads * self.head_dim * context

    def linear_parameters(self, hidden: int) -> int:
        """Weights of the projections."""
        query = self.query_heads * self.head_dim
        return hidden * (self.query_rank + 2 * self.head_dim) + self.query_rank * query + query * hidden


@dataclass(frozen=True)
class LatentAttention:
    """MLA: keys and values come from one compressed latent a token.

    Absorbed, the up-projections are folded into query and output, and the core works on the latents
    themselves; plain, full keys and values of every head are cached.
    """

    query_heads: int
    query_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    absorbed: bool = True

    @property
    def latent_dim(self) -> int:
        """Elements cached a token when absorbed."""
        return self.kv_rank + self.rope_dim

    def kept_elements(self, context: float) -> float:
        """Cache elements a sequence occupies."""
        if self.absorbed:
            return self.latent_dim * context
        return self.query_heads * (self.nope_dim + self.rope_dim + self.value_dim) * context

    def core_flops(self, context: float, counting: Counting) -> float:
        """Scores and weighted sum; the paper counts the rope part in the weighted sum too."""
        if not self.absorbed:
            return 2 * self.query_heads * (self.nope_dim + self.rope_dim + self.value_dim) * context
        values = self.latent_dim if counting is Counting.PAPER else self.kv_rank
        return 2 * self.query_heads * (self.latent_dim + values) * context

    def linear_parameters(self, hidden: int) -> int:
        """Weights of the projections; plain and absorbed multiply by the same matrices."""
        head = self.nope_dim + self.rope_dim
        if self.query_rank is None:
            query = hidden * self.query_heads * head
        else:
            query = hidden * self.query_rank + self.query_rank * self.query_heads * head
        up = self.query_heads * self.kv_rank * (self.nope_dim + self.value_dim)
        return query + hidden * self.latent_dim + up + self.query_heads * self.value_dim * hidden


@dataclass(frozen=True)
class LightningAttention:
    """Linear attention with a decaying state of `head_dim` × `head_dim` a head, and an output gate."""

    query_heads: int
    head_dim: int

    def kept_elements(self, context: float) -> float:
        """State elements a sequence occupies, whatever the context."""
        return self.query_heads * self.head_dim**2

    def core_flops(self, context: float, counting: Counting) -> float:
        """Update of the state and its product with the query."""
        paper = counting is Counting.PAPER
        factor = FITTED_LIGHTNING_FLOPS_PER_STATE_ELEMENT if paper else LIGHTNING_FLOPS_PER_STATE_ELEMENT
        return factor * self.kept_elements(context)

    def linear_parameters(self, hidden: int) -> int:
        """Weights of query, key, value, output and gate."""
        return 5 * hidden * self.query_heads * self.head_dim


Attention = GroupedAttention | MultiMatrixAttention | LatentAttention | LightningAttention


def read_elements(attention: Attention, context: float) -> float:
    """Cache elements moved for one token: the cache once, a state both ways."""
    passes = 2 if isinstance(attention, LightningAttention) else 1
    return passes * attention.kept_elements(context)


def cache_part(attention: Attention) -> str:
    """Which part of `Precision` gives the cache's type."""
    if isinstance(attention, LightningAttention):
        return "state"
    windowed = isinstance(attention, GroupedAttention) and attention.window is not None
    return "kv_windowed" if windowed else "kv"

"""USD for one token on hardware that is kept busy (section 4 of the paper).

`PAPER` counts and prices as the paper does: fp8 peaks where there are any, cache reads hidden behind the
core's FLOPs or the other way round, weights free (an endless batch), router and head left out. `EXACT` is
the roofline of `step3.plan.roofline`: every part at the peak of its own type and at the card's
efficiencies, router and head included, the weights charged to the batch that shares them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from step3.plan.attention import Counting
from step3.plan.deployment import Deployment
from step3.plan.errors import PlanError
from step3.plan.hardware import Hardware
from step3.plan.precision import Precision
from step3.plan.roofline import RooflineTimes, Speculation
from step3.plan.shape import ModelShape, token_work
from step3.plan.topology import Topology
from step3.plan.workload import Contexts

ENDLESS_BATCH = 1e12
"""Sequences enough for weights to cost nothing."""

TRAINING_PASSES = 3
"""A token's training costs a forward pass and a backward pass of twice its FLOPs."""


@dataclass(frozen=True)
class UnitCost:
    """What a card's work costs at its peak (table 5)."""

    usd_per_flop: float
    usd_per_byte: float


def unit_cost(card: Hardware) -> UnitCost:
    """Price a second over the paper's peak and over the memory bandwidth."""
    return UnitCost(card.usd_per_second / card.paper_peak, card.usd_per_second / card.memory_bandwidth)


@dataclass(frozen=True)
class TokenCost:
    """USD for one token, by part."""

    core: float
    """The attention's core or its reads of the cache, whichever costs more."""
    linear: float
    """The attention's projections."""
    ffn: float
    other: float = 0.0
    """Router and head."""

    @property
    def attention(self) -> float:
        """Everything on the attention side."""
        return self.core + self.linear + self.other

    @property
    def total(self) -> float:
        """Attention and FFN."""
        return self.attention + self.ffn


def token_cost(
    model: ModelShape,
    context: float,
    attention: Hardware,
    ffn: Hardware | None = None,
    counting: Counting = Counting.PAPER,
    precision: Precision | None = None,
    batch: float = ENDLESS_BATCH,
    speculation: Speculation | None = None,
) -> TokenCost:
    """USD for one decoded token.

    Args:
        model: the model.
        context: tokens behind the decoded one.
        attention: the card of the attention side.
        ffn: the card of the FFN side; None is the same one.
        counting: whose rules.
        precision: types of the parts, the model's own by default.
        batch: in `EXACT`, sequences that share a read of the weights.
        speculation: multi-token prediction.

    Raises:
        PlanError: the context or the batch is below 1.
    """
    if context < 1 or batch < 1:
        raise PlanError(f"context {context:g} and batch {batch:g} must be at least 1")
    precision, ffn = precision or model.precision, ffn or attention
    speculation = speculation or Speculation()
    rules = _paper_cost if counting is Counting.PAPER else _exact_cost
    cost = rules(model, context, attention, ffn, precision, batch, speculation)
    tokens = speculation.tokens_per_step
    return TokenCost(cost.core / tokens, cost.linear / tokens, cost.ffn / tokens, cost.other / tokens)


def _paper_cost(
    model: ModelShape,
    context: float,
    attention: Hardware,
    ffn: Hardware,
    precision: Precision,
    batch: float,
    speculation: Speculation,
) -> TokenCost:
    work, unit, width = (
        token_work(model, context, Counting.PAPER, precision),
        unit_cost(attention),
        speculation.width,
    )
    return TokenCost(
        core=max(width * work.core_flops * unit.usd_per_flop, work.kv_bytes * unit.usd_per_byte),
        linear=width * work.linear_flops * unit.usd_per_flop,
        ffn=width * work.ffn_flops * unit_cost(ffn).usd_per_flop,
    )


def _exact_cost(
    model: ModelShape,
    context: float,
    attention: Hardware,
    ffn: Hardware,
    precision: Precision,
    batch: float,
    speculation: Speculation,
) -> TokenCost:
    pair = Deployment(Topology(1, 1), attention, 1, ffn, 1)
    times = RooflineTimes(model, pair, precision, speculation)
    contexts = Contexts.fixed(context)
    kinds = Counter(times.layer_kinds)
    parts = [(n, times.attention_parts(layer, batch, contexts)) for layer, n in kinds.items()]
    on_attention = attention.usd_per_second / batch
    return TokenCost(
        core=on_attention * sum(n * part["core"] for n, part in parts),
        linear=on_attention * sum(n * part["linear"] for n, part in parts),
        ffn=ffn.usd_per_second / batch * sum(n * times.ffn(layer, batch) for layer, n in kinds.items()),
        other=on_attention * (sum(n * part["router"] for n, part in parts) + times.head(batch)),
    )


def training_cost(model: ModelShape, context: float, card: Hardware) -> float:
    """USD to train on one token, as figure 4 counts it: three times core, linear and FFN."""
    work = token_work(model, context, Counting.PAPER)
    flops = work.core_flops + work.linear_flops + work.ffn_flops
    return TRAINING_PASSES * flops * unit_cost(card).usd_per_flop


def cheapest_pair(
    model: ModelShape,
    context: float,
    attention: Sequence[Hardware],
    ffn: Sequence[Hardware],
    counting: Counting = Counting.PAPER,
    precision: Precision | None = None,
) -> tuple[Hardware, Hardware]:
    """The card that is cheapest for attention and the one that is cheapest for the FFN, each on its own."""

    def cost(card: Hardware) -> TokenCost:
        return token_cost(model, context, card, counting=counting, precision=precision)

    return min(attention, key=lambda card: cost(card).attention), min(ffn, key=lambda card: cost(card).ffn)

"""Stage times from first principles: each kernel takes what its bytes or its FLOPs need, whichever is more.

Divided by the efficiency of its kernel family, 1.0 unless the hardware's entry says otherwise. Counted:
the attention's core and projections, router, FFN weights that the batch touches, activations into and out
of the FFN, head, and every byte on the network and between the cards of a node.
"""

from dataclasses import dataclass
from functools import cached_property

from step3.plan.attention import Counting, GroupedAttention, read_elements
from step3.plan.deployment import Deployment
from step3.plan.efficiency import Efficiency
from step3.plan.ffn import FFN, DenseFFN, ExpertFFN, ffn_flops
from step3.plan.hardware import Hardware
from step3.plan.precision import BYTES, Precision, wire_bytes
from step3.plan.shape import Layer, ModelShape, cache_bytes, cache_part
from step3.plan.workload import Contexts

ROUTING_BYTES = 8
"""Bytes on the wire for one chosen expert: its number and its weight."""


@dataclass(frozen=True)
class Speculation:
    """Multi-token prediction: tokens drafted each step, and the chance that each is accepted."""

    drafts: int = 0
    acceptance: float = 0.0

    @property
    def width(self) -> int:
        """Tokens of one sequence that a step works on."""
        return 1 + self.drafts

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a step yields on average: 1 + a + a² + …"""
        return sum(self.acceptance**i for i in range(self.width))


@dataclass(frozen=True)
class RooflineTimes:
    """Times of each call of a deployment (a `TimeModel`)."""

    model: ModelShape
    deployment: Deployment
    precision: Precision
    speculation: Speculation = Speculation()
    imbalance: float = 1.0
    """Tokens of the busiest range of experts over the mean."""

    @cached_property
    def _layers(self) -> tuple[Layer, ...]:
        """The model's layers, and after them one draft layer for each drafted token."""
        return self.model.layers + (self.model.layers[-1],) * self.speculation.drafts

    @cached_property
    def layer_kinds(self) -> tuple[int, ...]:
        """For each layer, the first one that is like it; draft layers work on one token a sequence."""
        count = len(self.model.layers)
        return self.model.first_alike + (count,) * self.speculation.drafts

    def tokens_per_sequence(self, layer: int) -> int:
        """Tokens of one sequence that this layer works on."""
        return self.speculation.width if layer < len(self.model.layers) else 1

    def attention(self, layer: int, sequences: float, contexts: Contexts) -> float:
        """Seconds of core, projections and router on one attention card."""
        return sum(self.attention_parts(layer, sequences, contexts).values())

    def attention_parts(self, layer: int, sequences: float, contexts: Contexts) -> dict[str, float]:
        """Seconds of the attention side by kernel."""
        card = self.deployment.attention
        kind = self._layers[layer].attention
        tokens = sequences * self.tokens_per_sequence(layer)
        seen = contexts.mean_seen(kind.window if isinstance(kind, GroupedAttention) else None)
        core = roofline(
            card,
            card.efficiencies.attention,
            flops=tokens * kind.core_flops(seen, Counting.EXACT),
            kind=getattr(self.precision, cache_part(kind)),
            moved=sequences * cache_bytes(kind, read_elements(kind, seen), self.precision),
        )
        projections = kind.linear_parameters(self.model.hidden)
        router = self._layers[layer].ffn.router_parameters(self.model.hidden)
        return {
            "core": core,
            "linear": self._matrix(card, projections, tokens, self.precision.attention_weights),
            "router": self._matrix(card, router, tokens, self.precision.router),
        }

    def head(self, sequences: float) -> float:
        """Seconds of the output head for verified and drafted tokens."""
        card, parameters = self.deployment.attention, self.model.head_parameters
        verify = self._matrix(card, parameters, sequences * self.speculation.width, self.precision.head)
        draft = self._matrix(card, parameters, sequences, self.precision.head)
        return verify + self.speculation.drafts * draft

    def _matrix(self, card: Hardware, parameters: int, tokens: float, kind: str) -> float:
        return roofline(
            card,
            card.efficiencies.linear,
            flops=2 * parameters * tokens,
            kind=kind,
            moved=parameters * BYTES[kind] if tokens else 0.0,
        )

    def ffn(self, layer: int, all_sequences: float) -> float:
        """Seconds on one FFN card: its share of the FLOPs and of the weights that the batch touches."""
        deployment, ffn = self.deployment, self._layers[layer].ffn
        tokens = all_sequences * self.tokens_per_sequence(layer) / deployment.topology.replicas
        hidden, shares = self.model.hidden, deployment.weight_cards
        uneven = deployment.uneven_share(ffn)
        touched = uneven * ffn.touched_intermediate(tokens)
        weights = 3 * hidden * touched * BYTES[self.precision.ffn_weights] / shares
        if isinstance(ffn, ExpertFFN) and deployment.expert_ways > 1:
            uneven *= self.imbalance
        activations = (
            tokens
            * self._arriving(ffn)
            * hidden
            * (wire_bytes(self.precision.wire_out) + BYTES[self.precision.wire_back])
        )
        return roofline(
            deployment.ffn,
            deployment.ffn.efficiencies.ffn,
            flops=uneven * tokens * ffn_flops(ffn, hidden) / shares,
            kind=self.precision.ffn_weights,
            moved=weights + activations,
        )

    def _arriving(self, ffn: FFN) -> float:
        """Share of the tokens that one FFN card sees: all, or in a monolith those routed to it."""
        return _reach(ffn, self.deployment.attention_cards) if self.deployment.is_monolith else 1.0

    def out(self, layer: int, sequences: float, all_sequences: float) -> float:
        """Seconds from the attention cards into every FFN card that needs the tokens."""
        ffn = self._layers[layer].ffn
        routing = ROUTING_BYTES * ffn.top_k if isinstance(ffn, ExpertFFN) else 0
        each = self.model.hidden * wire_bytes(self.precision.wire_out) + routing
        return self._travel(layer, sequences, all_sequences, each)

    def back(self, layer: int, sequences: float, all_sequences: float) -> float:
        """Seconds of the partial sums on their way back."""
        each = self.model.hidden * wire_bytes(self.precision.wire_back)
        return self._travel(layer, sequences, all_sequences, each)

    def _travel(self, layer: int, sequences: float, all_sequences: float, token_bytes: float) -> float:
        width = self.tokens_per_sequence(layer)
        mine, everyone = sequences * width * token_bytes, all_sequences * width * token_bytes
        load = self.network_load(layer, mine, everyone)
        deployment = self.deployment
        network = max(
            load.attention_card
            / (deployment.attention.network_bandwidth * deployment.attention.efficiencies.network),
            load.ffn_card / (deployment.ffn.network_bandwidth * deployment.ffn.efficiencies.network),
        )
        latency = (
            max(deployment.attention.network_latency, deployment.ffn.network_latency) if network else 0.0
        )
        node = load.node / (deployment.ffn.node_bandwidth * deployment.ffn.efficiencies.node)
        return network + latency + node

    def network_load(self, layer: int, mine: float, everyone: float) -> "NetworkLoad":
        """Bytes through the links for one call.

        Args:
            layer: the layer.
            mine: bytes of one attention card's activations.
            everyone: bytes of all attention cards' activations.
        """
        deployment, topology = self.deployment, self.deployment.topology
        if not deployment.is_monolith:
            arriving = everyone / topology.replicas
            cards = deployment.ffn_cards
            return NetworkLoad(mine * topology.shards, arriving / cards, arriving * (cards - 1) / cards)
        cards, ffn = deployment.attention_cards, self._layers[layer].ffn
        in_node = min(cards, deployment.attention.cards_per_node)
        nodes = -(-cards // in_node)
        instance = mine * cards
        across = instance * _reach(ffn, nodes) * (nodes - 1) / nodes / in_node
        within = instance * _reach(ffn, cards) * (in_node - 1) / in_node
        return NetworkLoad(across, across, within)


@dataclass(frozen=True)
class NetworkLoad:
    """Bytes of one call through each kind of link, one way."""

    attention_card: float
    """Through the network interface of one attention card."""
    ffn_card: float
    """Through the network interface of one FFN card."""
    node: float
    """Into one FFN card from the others of its node."""


def _reach(ffn: FFN, places: int) -> float:
    """Chance that a token is needed at a given one of so many places, which share the FFN evenly."""
    if isinstance(ffn, DenseFFN) or places == 1:
        return 1.0
    return 1 - (1 - 1 / places) ** ffn.top_k


def roofline(card: Hardware, efficiency: Efficiency, flops: float, kind: str, moved: float) -> float:
    """Seconds for so many FLOPs and bytes on one card: the longer of the two."""
    compute = flops / (card.peak(kind) * efficiency.compute)
    return max(compute, moved / (card.memory_bandwidth * efficiency.memory))

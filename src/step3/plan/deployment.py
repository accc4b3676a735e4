"""A deployment: which cards do what, and how many."""

from dataclasses import dataclass

from step3.plan.errors import PlanError
from step3.plan.ffn import FFN, ExpertFFN
from step3.plan.hardware import Hardware
from step3.plan.topology import Topology


@dataclass(frozen=True)
class Deployment:
    """Instances of a topology, and the cards of one instance of each role.

    In the monolith the cards of an instance hold attention for sequences of their own, and an even share
    of every FFN.

    Raises:
        PlanError: an instance without cards, or FFN cards in a monolith.
    """

    topology: Topology
    attention: Hardware
    attention_cards: int
    """Cards of one attention instance, each serving sequences of its own."""
    ffn: Hardware
    ffn_cards: int
    """Cards of one FFN instance, which share its weights; 0 in the monolith."""

    def __post_init__(self) -> None:
        if self.attention_cards < 1 or (self.ffn_cards < 1) != self.topology.is_monolith:
            raise PlanError(
                f"{self.topology} cannot have {self.attention_cards} cards an attention instance "
                f"and {self.ffn_cards} an FFN instance"
            )

    @property
    def is_monolith(self) -> bool:
        """Whether attention and FFN share their cards."""
        return self.topology.is_monolith

    @property
    def all_attention_cards(self) -> int:
        """Attention cards of all instances."""
        return self.topology.attention * self.attention_cards

    @property
    def all_ffn_cards(self) -> int:
        """FFN cards of all instances."""
        return self.topology.ffn * self.ffn_cards

    @property
    def cards(self) -> int:
        """All cards."""
        return self.all_attention_cards + self.all_ffn_cards

    @property
    def usd_per_second(self) -> float:
        """Price of all cards."""
        attention = self.all_attention_cards * self.attention.usd_per_second
        return attention + self.all_ffn_cards * self.ffn.usd_per_second

    def merged(self, sequences: float) -> float:
        """Sequences of one micro-batch that one call of the FFN serves, `sequences` being those of a card."""
        return sequences * (self.attention_cards if self.is_monolith else self.all_attention_cards)

    @property
    def weight_cards(self) -> int:
        """Cards that together hold one copy of every FFN."""
        return self.attention_cards if self.is_monolith else self.topology.shards * self.ffn_cards

    @property
    def expert_ways(self) -> int:
        """Ranges that the experts are divided into."""
        return self.attention_cards if self.is_monolith else self.topology.expert_parallel

    def uneven_share(self, ffn: FFN) -> float:
        """How much more than an even share of an FFN the fullest card has: experts come in whole numbers."""
        if not isinstance(ffn, ExpertFFN):
            return 1.0
        return -(-ffn.experts // self.expert_ways) * self.expert_ways / ffn.experts


def monolith(card: Hardware, cards: int, instances: int = 1) -> Deployment:
    """Attention and FFN together on `cards` cards an instance."""
    return Deployment(Topology(instances, 0), card, cards, card, 0)

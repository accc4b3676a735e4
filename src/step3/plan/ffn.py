"""What one FFN holds and computes: dense SwiGLU, or experts with or without a shared one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DenseFFN:
    """SwiGLU: gate, up and down."""

    intermediate: int

    @property
    def active_intermediate(self) -> int:
        """Intermediate columns that one token passes through."""
        return self.intermediate

    @property
    def total_intermediate(self) -> int:
        """Intermediate columns held."""
        return self.intermediate

    def router_parameters(self, hidden: int) -> int:
        """Weights of the router: none."""
        return 0

    def touched_intermediate(self, tokens: float) -> float:
        """Intermediate columns whose weights a batch reads."""
        return self.intermediate


@dataclass(frozen=True)
class ExpertFFN:
    """Mixture of experts: each token passes `top_k` of `experts`, and the shared expert if there is one."""

    experts: int
    top_k: int
    intermediate: int
    """Intermediate size of one routed expert."""
    shared_intermediate: int = 0
    """Intermediate size of all shared experts together."""

    @property
    def active_intermediate(self) -> int:
        """Intermediate columns that one token passes through."""
        return self.top_k * self.intermediate + self.shared_intermediate

    @property
    def total_intermediate(self) -> int:
        """Intermediate columns held."""
        return self.experts * self.intermediate + self.shared_intermediate

    def router_parameters(self, hidden: int) -> int:
        """Weights of the router."""
        return hidden * self.experts

    def touched_intermediate(self, tokens: float) -> float:
        """Intermediate columns whose weights a batch reads, expected over independent uniform routing."""
        untouched = (1 - self.top_k / self.experts) ** tokens
        return self.experts * self.intermediate * (1 - untouched) + self.shared_intermediate


FFN = DenseFFN | ExpertFFN


def ffn_parameters(ffn: FFN, hidden: int) -> int:
    """Weights of gate, up and down, of all experts."""
    return 3 * hidden * ffn.total_intermediate


def ffn_flops(ffn: FFN, hidden: int) -> int:
    """FLOPs of one token: 6 times hidden times active intermediate."""
    return 6 * hidden * ffn.active_intermediate

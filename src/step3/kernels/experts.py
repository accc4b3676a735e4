"""SwiGLU: `down(silu(gate(x)) * up(x))`, for every token or for the experts that each token chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from step3.kernels.linear import Weight, expand, linear, stacked_linear
from step3.kernels.routing import combine, dispatch


@dataclass(frozen=True, eq=False)
class SwiGLU:
    """The weights of one FFN, or of a stack of experts with a leading dimension.

    Attributes:
        gate_up: gate and up, `[..., 2 * intermediate, hidden]`, or the two apart.
        down: `[..., hidden, intermediate]`.
    """

    gate_up: tuple[Weight, ...]
    down: Weight

    def __getitem__(self, expert: int) -> SwiGLU:
        return SwiGLU(tuple(weight[expert] for weight in self.gate_up), self.down[expert])

    @property
    def num_experts(self) -> int:
        """Of a stack."""
        return self.down.shape[0]


def swiglu(x: Tensor, ffn: SwiGLU) -> Tensor:
    """`x` `[tokens, hidden]` → `[tokens, hidden]`."""
    gate, up = stacked_linear(x, ffn.gate_up).chunk(2, -1)
    return linear(F.silu(gate).mul_(up), ffn.down)


def experts_reference(x: Tensor, ids: Tensor, weights: Tensor, experts: SwiGLU, first: int = 0) -> Tensor:
    """`experts_swiglu`, token by token."""
    output = torch.zeros_like(x, dtype=torch.float32)
    for token in range(x.shape[0]):
        for expert, weight in zip(ids[token].tolist(), weights[token], strict=True):
            if first <= expert < first + experts.num_experts:
                chosen = experts[expert - first]
                gate_up = torch.cat([expand(part, x.dtype) for part in chosen.gate_up])
                gate, up = (gate_up @ x[token]).chunk(2)
                output[token] += weight * (expand(chosen.down, x.dtype) @ (F.silu(gate) * up))
    return output.to(x.dtype)


def experts_swiglu(x: Tensor, ids: Tensor, weights: Tensor, experts: SwiGLU, first: int = 0) -> Tensor:
    """Each token's chosen experts, weighted and summed in the order of its choices, in float32.

    A stack may hold only some of the experts: choices outside of it add nothing, so that the outputs of
    stacks that hold all experts between them sum to the whole.

    Args:
        x: `[tokens, hidden]`.
        ids: `[tokens, k]` int64, counted over all experts.
        weights: `[tokens, k]` float32.
        experts: those numbered from `first` on.

    Returns:
        `[tokens, hidden]` in the dtype of `x`.
    """
    held = experts.num_experts
    local = ids - first
    # Choices that this stack does not hold are sorted behind it, and give zeros.
    local = torch.where((local >= 0) & (local < held), local, held)
    plan = dispatch(local, held + 1)
    outputs = _grouped(x[plan.token], plan.counts[:held], experts)
    return combine(outputs, weights, plan)


def _grouped(rows: Tensor, counts: Sequence[int], experts: SwiGLU) -> Tensor:
    """Each expert over its rows; `rows` `[pairs, hidden]` lie in expert order, then those of no expert."""
    outputs = torch.empty_like(rows)
    start = 0
    for expert, count in enumerate(counts):
        if count:
            outputs[start : start + count] = swiglu(rows[start : start + count], experts[expert])
            start += count
    outputs[start:] = 0
    return outputs

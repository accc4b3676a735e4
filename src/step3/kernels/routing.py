"""Which experts a token goes to, and the order in which experts take their tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from step3.kernels.precision import widen


def route(logits: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """Chooses experts by softmax over all of them, in float32.

    Args:
        logits: `[tokens, experts]`.
        renormalise: scale the chosen weights to sum to one (`norm_expert_weight`).

    Returns:
        Expert ids `[tokens, top_k]` int64 and weights `[tokens, top_k]` float32, best first.
    """
    weights, experts = torch.topk(widen(logits).softmax(dim=-1), top_k, dim=-1)
    if renormalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return experts, weights


@dataclass(frozen=True)
class Dispatch:
    """The (token, expert) pairs of a batch, gathered by expert.

    Attributes:
        token: `[tokens * top_k]`, the token of each pair, in expert order.
        place: `[tokens * top_k]`, where pair `token * top_k + choice` stands in that order.
        counts: tokens of each expert, zeros included.
    """

    token: Tensor
    place: Tensor
    counts: list[int]


def dispatch(experts: Tensor, num_experts: int) -> Dispatch:
    """Sorts the pairs of `experts` `[tokens, top_k]` by expert; the sort is stable, so the order is fixed."""
    top_k = experts.shape[1]
    order = experts.flatten().argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=order.device)
    counts = torch.bincount(experts.flatten(), minlength=num_experts).tolist()
    return Dispatch(token=order // top_k, place=place, counts=counts)


def combine(outputs: Tensor, weights: Tensor, plan: Dispatch) -> Tensor:
    """Weighted sum of each token's experts, in the order of its choices, in float32.

    Summing by token rather than scattering by expert makes the result independent of the batch around it.

    Args:
        outputs: `[tokens * top_k, hidden]` in expert order.
        weights: `[tokens, top_k]` float32.

    Returns:
        `[tokens, hidden]` in the dtype of `outputs`.
    """
    tokens, top_k = weights.shape
    by_token = outputs[plan.place].view(tokens, top_k, outputs.shape[-1])
    return (widen(by_token) * weights[:, :, None]).sum(dim=1).to(outputs.dtype)

"""Experts against a loop over tokens, whole and in stacks that hold only some."""

import pytest
import torch
from torch import Tensor

from step3.checkpoint.block_fp8 import quantise
from step3.kernels.experts import SwiGLU, experts_reference, experts_swiglu, swiglu
from step3.kernels.linear import BlockFp8, fuse

EXPERTS, HIDDEN, INNER, TOP_K = 6, 128, 96, 3


def stack(quantised: bool) -> SwiGLU:
    def draw(*shape: int) -> Tensor | BlockFp8:
        weight = torch.randn(*shape) / shape[-1] ** 0.5
        return BlockFp8(*quantise(weight)) if quantised else weight

    gate_up = fuse((draw(EXPERTS, INNER, HIDDEN), draw(EXPERTS, INNER, HIDDEN)))
    return SwiGLU(gate_up, draw(EXPERTS, HIDDEN, INNER))


def choices(tokens: int) -> tuple[Tensor, Tensor]:
    ids = torch.stack([torch.randperm(EXPERTS)[:TOP_K] for _ in range(tokens)])
    return ids, torch.rand(tokens, TOP_K)


@pytest.mark.parametrize("quantised", [False, True], ids=["plain", "block-fp8"])
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_equals_the_reference(tokens: int, quantised: bool) -> None:
    torch.manual_seed(tokens)
    experts, x, (ids, weights) = stack(quantised), torch.randn(tokens, HIDDEN), choices(tokens)
    torch.testing.assert_close(
        experts_swiglu(x, ids, weights, experts), experts_reference(x, ids, weights, experts)
    )


def test_an_expert_that_nobody_chose_does_no_harm() -> None:
    torch.manual_seed(0)
    experts, x = stack(quantised=False), torch.randn(4, HIDDEN)
    ids, weights = torch.tensor([[1, 2, 4]] * 4), torch.rand(4, TOP_K)
    torch.testing.assert_close(
        experts_swiglu(x, ids, weights, experts), experts_reference(x, ids, weights, experts)
    )


def test_stacks_of_some_experts_sum_to_the_whole() -> None:
    torch.manual_seed(0)
    experts, x, (ids, weights) = stack(quantised=False), torch.randn(9, HIDDEN), choices(9)
    parts = [
        SwiGLU(tuple(w[a:b] for w in experts.gate_up), experts.down[a:b]) for a, b in ((0, 2), (2, 5), (5, 6))
    ]
    outputs = [
        experts_swiglu(x, ids, weights, part, first) for part, first in zip(parts, (0, 2, 5), strict=True)
    ]
    torch.testing.assert_close(sum(outputs), experts_swiglu(x, ids, weights, experts))


def test_a_stack_that_nobody_chose_gives_zeros() -> None:
    experts, x = stack(quantised=False), torch.randn(2, HIDDEN)
    ids, weights = torch.tensor([[9, 8, 7]] * 2), torch.ones(2, TOP_K)
    assert not experts_swiglu(x, ids, weights, experts).any()


def test_swiglu_is_gate_times_up_then_down() -> None:
    gate, up, down = torch.randn(4, 8), torch.randn(4, 8), torch.randn(8, 4)
    x = torch.randn(3, 8)
    expected = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    torch.testing.assert_close(swiglu(x, SwiGLU((gate, up), down)), expected)
    torch.testing.assert_close(swiglu(x, SwiGLU(fuse((gate, up)), down)), expected)

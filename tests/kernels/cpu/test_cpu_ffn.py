"""The FFN on the kernels against the reference, token by token in float32."""

import pytest
import torch
from torch import Tensor

from step3.checkpoint.block_fp8 import dequantise, quantise
from step3.kernels.cpu.ffn import CpuSwiGLU, PackedFFN
from step3.kernels.cpu.weights import Placement, Workspace
from step3.kernels.experts import SwiGLU, experts_reference, swiglu
from step3.kernels.linear import BlockFp8, Weight

EXPERTS, TOP_K = 6, 3
SIZES = [(128, 96), (96, 40), (70, 18)]
"""Hidden and inner."""


def draw(quantised: bool, *shape: int) -> Weight:
    weight = torch.randn(*shape) / shape[-1] ** 0.5
    return BlockFp8(*quantise(weight)) if quantised else weight.bfloat16()


def wide(weight: Weight) -> Tensor:
    return dequantise(weight.q, weight.scale) if isinstance(weight, BlockFp8) else weight.float()


class Both:
    """An FFN for the kernels, and the same in float32."""

    def __init__(self, placement: Placement, quantised: bool, *lead: int, hidden: int, inner: int) -> None:
        gate, up = draw(quantised, *lead, inner, hidden), draw(quantised, *lead, inner, hidden)
        down = draw(quantised, *lead, hidden, inner)
        self.packed = CpuSwiGLU.take(placement, gate, up, down)
        self.reference = SwiGLU((torch.cat((wide(gate), wide(up)), -2),), wide(down))


def choices(tokens: int) -> tuple[Tensor, Tensor]:
    ids = torch.stack([torch.randperm(EXPERTS)[:TOP_K] for _ in range(tokens)])
    return ids, torch.rand(tokens, TOP_K)


def assert_near(got: Tensor, expected: Tensor) -> None:
    """bfloat16 is exact to 2^-9; it is rounded before the second product, and at the end."""
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(
        got.float(), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()) + 1e-6
    )


@pytest.mark.parametrize("quantised", [False, True], ids=["plain", "block-fp8"])
@pytest.mark.parametrize(("hidden", "inner"), SIZES)
def test_experts_and_a_shared_one(placement: Placement, quantised: bool, hidden: int, inner: int) -> None:
    experts = Both(placement, quantised, EXPERTS, hidden=hidden, inner=inner)
    shared = Both(placement, quantised, hidden=hidden, inner=inner + 16)
    ffn = PackedFFN(Workspace(placement.library), shared.packed, experts.packed)
    for tokens in (1, 2, 7, 60, 450):
        x, (ids, weights) = torch.randn(tokens, hidden).bfloat16(), choices(tokens)
        expected = experts_reference(x.float(), ids, weights, experts.reference)
        assert_near(ffn.forward(x, ids, weights), expected + swiglu(x.float(), shared.reference))


def test_a_dense_layer(placement: Placement) -> None:
    dense = Both(placement, False, hidden=96, inner=200)
    ffn = PackedFFN(Workspace(placement.library), dense.packed)
    for tokens in (1, 30):
        x = torch.randn(tokens, 96).bfloat16()
        assert_near(ffn.forward(x, None, None), swiglu(x.float(), dense.reference))


def test_experts_that_nobody_chose(placement: Placement) -> None:
    experts = Both(placement, False, EXPERTS, hidden=64, inner=32)
    ffn = PackedFFN(Workspace(placement.library), None, experts.packed)
    x, ids, weights = torch.randn(5, 64).bfloat16(), torch.tensor([[4, 1, 2]] * 5), torch.rand(5, TOP_K)
    assert_near(ffn.forward(x, ids, weights), experts_reference(x.float(), ids, weights, experts.reference))


def test_choices_of_experts_that_are_elsewhere_add_nothing(placement: Placement) -> None:
    experts = Both(placement, False, EXPERTS, hidden=64, inner=32)
    x, (ids, weights) = torch.randn(9, 64).bfloat16(), choices(9)
    ffn = PackedFFN(Workspace(placement.library), None, experts.packed, first=4)
    assert_near(
        ffn.forward(x, ids, weights), experts_reference(x.float(), ids, weights, experts.reference, 4)
    )
    far = PackedFFN(Workspace(placement.library), None, experts.packed, first=100)
    assert not far.forward(x, ids, weights).any()


def test_a_shard_that_holds_nothing_gives_zeros(placement: Placement) -> None:
    x, (ids, weights) = torch.randn(3, 64).bfloat16(), choices(3)
    assert not PackedFFN(Workspace(placement.library), None).forward(x, ids, weights).any()


def test_a_token_does_not_depend_on_the_tokens_beside_it(placement: Placement) -> None:
    experts, shared = (
        Both(placement, False, EXPERTS, hidden=128, inner=64),
        Both(placement, False, hidden=128, inner=64),
    )
    ffn = PackedFFN(Workspace(placement.library), shared.packed, experts.packed)
    # Of many a thread takes whole experts, of a few all threads take some panels.
    for tokens in (50, 450):
        x, (ids, weights) = torch.randn(tokens, 128).bfloat16(), choices(tokens)
        together = ffn.forward(x, ids, weights)
        for token in (0, 17, tokens - 1):
            alone = ffn.forward(x[token : token + 1], ids[token : token + 1], weights[token : token + 1])
            assert torch.equal(alone[0], together[token])


def test_more_tokens_than_the_caches_hold(placement: Placement) -> None:
    dense = Both(placement, False, hidden=1024, inner=512)
    ffn = PackedFFN(Workspace(placement.library), dense.packed)
    x = torch.randn(3100, 1024).bfloat16()
    got = ffn.forward(x, None, None)
    assert_near(got, swiglu(x.float(), dense.reference))
    assert torch.equal(got[3000:3007], ffn.forward(x[3000:3007], None, None))


def test_no_tokens(placement: Placement) -> None:
    dense = Both(placement, False, hidden=64, inner=32)
    assert PackedFFN(Workspace(placement.library), dense.packed).forward(
        torch.zeros(0, 64).bfloat16(), None, None
    ).shape == (0, 64)

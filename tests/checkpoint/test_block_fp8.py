import pytest
import torch
from checkpoints import GOLDEN, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from step3.checkpoint.block_fp8 import dequantise, quantise
from step3.checkpoint.errors import CheckpointError

SIZES = st.integers(1, 300)
SEEDS = st.integers(0, 2**31)


def drawn(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Weights whose blocks differ in size by many orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    spread = 10 ** (torch.rand(shape, generator=generator) * 8 - 6)
    return torch.randn(shape, generator=generator) * spread


def each_block(weight: torch.Tensor, scale: torch.Tensor):
    for i in range(scale.shape[-2]):
        for j in range(scale.shape[-1]):
            yield weight[..., i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128], scale[..., i, j]


def test_equals_the_golden_checkpoint_bit_for_bit():
    plain = load_file(GOLDEN / "text" / "model.safetensors")
    golden = load_file(GOLDEN / "text-fp8" / "model.safetensors")
    quantised = [name for name in plain if name + "_scale_inv" in golden]
    assert len(quantised) == 38
    for name in quantised:
        q, scale = quantise(plain[name])
        assert same_bits(q, golden[name])
        assert same_bits(scale, golden[name + "_scale_inv"])


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, SEEDS)
def test_every_value_is_within_the_rounding_of_its_block(rows, columns, seed):
    weight = drawn((rows, columns), seed)
    q, scale = quantise(weight)
    assert q.shape == weight.shape
    assert scale.shape == (-(-rows // 128), -(-columns // 128))
    restored = dequantise(q, scale)
    for (block, s), (back, _) in zip(each_block(weight, scale), each_block(restored, scale), strict=True):
        bound = torch.maximum(block.abs() * 2**-4, s * 2**-10) * (1 + 1e-6)
        assert ((back - block).abs() <= bound).all()
        assert back.abs().max() == pytest.approx(block.abs().max().item(), rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, SEEDS)
def test_quantising_again_changes_nothing(rows, columns, seed):
    q, scale = quantise(drawn((rows, columns), seed))
    again, scale_again = quantise(dequantise(q, scale))
    assert same_bits(again, q)
    torch.testing.assert_close(scale_again, scale, rtol=2**-23, atol=0)


def test_dequantising_is_the_product_and_nothing_else():
    q = torch.arange(256, dtype=torch.uint8).repeat(130, 1).view(torch.float8_e4m3fn)
    scale = torch.rand(2, 2) + 0.5
    expected = q.float() * scale.repeat_interleave(128, 0)[:130].repeat_interleave(128, 1)
    torch.testing.assert_close(dequantise(q, scale), expected, rtol=0, atol=0, equal_nan=True)


def test_experts_are_quantised_as_if_alone():
    weight = drawn((3, 130, 70), 0)
    q, scale = quantise(weight)
    assert scale.shape == (3, 2, 1)
    for i in range(3):
        alone, alone_scale = quantise(weight[i])
        assert same_bits(q[i], alone)
        assert same_bits(scale[i], alone_scale)


def test_a_block_of_zeros_has_scale_one():
    weight = torch.zeros(128, 256)
    weight[5, 200] = 3.0
    q, scale = quantise(weight)
    assert scale[0, 0] == 1
    assert dequantise(q, scale).equal(weight)


@pytest.mark.parametrize("value", [1e-45, 1e-40, 3e38])
def test_the_smallest_and_largest_floats_survive(value):
    weight = torch.full((1, 1), value)
    back = dequantise(*quantise(weight))
    assert torch.isfinite(back).all()
    assert (back - weight).abs().item() <= max(value * 2**-4, 2**-136)


def test_values_between_two_numbers_go_to_the_nearer_and_ties_to_even():
    weight = torch.tensor([[448.0, 416.0 + 15, 416.0 + 17, 17.0, 19.0]])
    q, scale = quantise(weight)
    assert scale.item() == 1
    assert q.float().tolist() == [[448.0, 416.0, 448.0, 16.0, 20.0]]


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_weights_that_are_not_finite_are_refused_by_name(bad):
    weight = torch.ones(200, 200)
    weight[150, 150] = bad
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.x: expected finite weights"):
        quantise(weight, "model.layers.0.x")

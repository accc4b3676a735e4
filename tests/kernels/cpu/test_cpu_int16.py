"""Products of 16-bit integers against the same quantisation in torch, and how little it loses."""

import pytest
import torch
from torch import Tensor

from step3.checkpoint.block_fp8 import dequantise, quantise
from step3.kernels.cpu import INTEGER_LEVELS, Library
from step3.kernels.cpu.attention import packed_linear
from step3.kernels.cpu.ffn import CpuSwiGLU, PackedFFN
from step3.kernels.cpu.weights import InPlace, Packing, Placement, Workspace
from step3.kernels.experts import SwiGLU, experts_reference, swiglu
from step3.kernels.linear import BLOCK, BlockFp8, Weight

ROWS = 13
"""From here on rows are integers (NARROW_ROWS of narrow.h)."""
ROWS_NORM, WEIGHTS_NORM, MOST = 49000, 32767, 32767
SHAPES = [(64, 128), (33, 300), (40, 70), (288, 256), (300, 4500)]
KINDS = ["bf16", "fp8"]


@pytest.fixture(params=[Packing, InPlace], ids=["packed", "in-place"])
def placement(request: pytest.FixtureRequest, library: Library) -> Placement:
    if library.level not in INTEGER_LEVELS[16]:
        pytest.skip(f"{library.level} multiplies nothing faster in 16-bit integers")
    return request.param(library, integers=16)


def draw(kind: str, *shape: int) -> Weight:
    weight = torch.randn(*shape) / shape[-1] ** 0.5
    return weight.bfloat16() if kind == "bf16" else BlockFp8(*quantise(weight))


def wide(weight: Weight) -> Tensor:
    return dequantise(weight.q, weight.scale) if isinstance(weight, BlockFp8) else weight.float()


def product(placement: Placement, x: Tensor, weight: Weight) -> Tensor:
    return packed_linear(x, placement.take((weight,)), Workspace(placement.library))


def row_steps(block: Tensor) -> Tensor:
    """Of the rows of a block of activations: what their integers are multiples of."""
    return torch.maximum(block.norm(dim=-1) / ROWS_NORM, block.abs().amax(-1) / MOST)[:, None]


def bf16_steps(block: Tensor) -> Tensor:
    """The same of rows of weights, which are the product's columns."""
    return block.norm(dim=-1, keepdim=True) / WEIGHTS_NORM


def fp8_steps(block: Tensor) -> Tensor:
    """Those of fp8: powers of two that leave 12 bits, and 2^-7 at least."""
    exponent = torch.frexp(block.abs().amax(-1)).exponent
    return torch.exp2(torch.clamp(exponent.float(), min=5) - 12)[:, None]


def integers(block: Tensor, step: Tensor) -> Tensor:
    return (block / step).nan_to_num(0).round().double()


def quantised_product(x: Tensor, weight: Weight) -> Tensor:
    """What the kernel should give: sums of integers for each 128 columns, scaled."""
    is_fp8 = isinstance(weight, BlockFp8)
    whole = weight.q.float() if is_fp8 else weight.float()
    total = torch.zeros(len(x), len(whole), dtype=torch.float64)
    for block, begin in enumerate(range(0, x.shape[1], BLOCK)):
        rows, columns = x[:, begin : begin + BLOCK].float(), whole[:, begin : begin + BLOCK]
        row_step, step = row_steps(rows), fp8_steps(columns) if is_fp8 else bf16_steps(columns)
        sums = integers(rows, row_step) @ integers(columns, step).T
        assert sums.abs().max() < 2**31
        if is_fp8:
            step = step * weight.scale[:, block].repeat_interleave(BLOCK)[: len(step), None]
        total += sums * row_step * step.T
    return total


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [ROWS, ROWS + 1, 53, 300])
def test_is_the_quantised_product(placement: Placement, kind: str, shape: tuple[int, int], rows: int) -> None:
    weight, x = draw(kind, *shape), torch.randn(rows, shape[1]).bfloat16()
    x[3] = 0
    got, expected = product(placement, x, weight), quantised_product(x, weight)
    lost = rms(expected - x.double() @ wide(weight).double().T)
    assert 0 < rms(got - expected) < 0.2 * lost
    assert not got[3].any()


@pytest.mark.parametrize("kind", KINDS)
def test_loses_a_fifth_of_what_rounding_to_bfloat16_does(placement: Placement, kind: str) -> None:
    weight, whole = draw(kind, 256, 1024), torch.randn(100, 1024)
    x = whole.bfloat16()
    exact = x.double() @ wide(weight).double().T
    rounding = rms(exact - whole.double() @ wide(weight).double().T)
    assert rms(product(placement, x, weight) - exact) < 0.2 * rounding


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outlier", [1.0, 50.0, 1e4])
def test_outliers_cost_their_block_no_more_than_rounding_them(
    placement: Placement, kind: str, outlier: float
) -> None:
    weight, x = torch.randn(128, 512), torch.randn(64, 512)
    weight[5, 70] = x[:, 200] = outlier
    x = x.bfloat16()
    taken = weight.bfloat16() if kind == "bf16" else BlockFp8(*quantise(weight))
    exact = x.double() @ wide(taken).double().T
    bounds = x.double().norm(dim=-1)[:, None] * wide(taken).double().norm(dim=-1)
    assert ((product(placement, x, taken) - exact).abs() <= 2**-9 * bounds).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_block_is_too_large_for_its_sum(placement: Placement, kind: str) -> None:
    """The largest sums are those of a row and a column that are alike: 128 equal values, or a single one."""
    blocks = torch.zeros(8, 512)
    blocks[0], blocks[1, 7], blocks[2, :2] = 1, 1, 1
    blocks[3], blocks[4] = 1 - 2.0**-8, torch.tensor([1.0, -1.0]).repeat(256)
    blocks[5], blocks[6] = torch.logspace(0, 2, 512), 1e-6
    x = blocks.repeat(2, 1).bfloat16()
    weight = x if kind == "bf16" else BlockFp8(*quantise(x.float()))
    exact = x.double() @ wide(weight).double().T
    torch.testing.assert_close(product(placement, x, weight).double(), exact, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("rows", [ROWS, 30, 65])
def test_every_fp8_value_counts(placement: Placement, rows: int) -> None:
    """Beside 448 whatever is from 1 on is exact, and the rest to an eighth of half a step."""
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    beside = torch.tensor([448.0, *[0.0] * 126]).to(torch.float8_e4m3fn).expand(256, 127)
    stored = torch.cat([values[:, None].view(torch.uint8), beside.view(torch.uint8)], 1)
    weight = BlockFp8(stored.view(torch.float8_e4m3fn), torch.ones(2, 1))
    x = torch.zeros(rows, 128).bfloat16()
    x[:, 0] = 1
    got, exact = product(placement, x, weight), values.float().expand(rows, -1)
    assert got.isnan().equal(exact.isnan())
    assert (got - exact).nan_to_num(0).abs().max() <= 1 / 16 + 1e-4
    assert (got - exact)[exact.abs() >= 1].abs().max() <= 448 * 2e-7


@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_in_its_row_and_column(placement: Placement, kind: str) -> None:
    weight, x = draw(kind, 48, 200), torch.randn(30, 200).bfloat16()
    values = weight.q if isinstance(weight, BlockFp8) else weight
    values[37, 131] = torch.nan
    x[7, 3] = torch.nan
    got = product(placement, x, weight)
    assert got[7].isnan().all()
    assert got[:, 37].isnan().all()
    assert got.isnan().sum() == 30 + 48 - 1


def test_infinity_does_not_become_a_number(placement: Placement) -> None:
    weight, x = torch.randn(48, 200).bfloat16(), torch.randn(30, 200).bfloat16()
    weight[5, 6], x[2, 9] = torch.inf, -torch.inf
    is_finite = product(placement, x, weight).isfinite()
    assert not is_finite[2].any()
    assert not is_finite[:, 5].any()
    assert is_finite.sum() == 29 * 47


@pytest.mark.parametrize("power", [-60, -66, -80, -126])
def test_what_is_too_small_for_its_square_stays_small(placement: Placement, power: int) -> None:
    for tiny_x, tiny_weight in ((power, 0), (0, power)):
        x, weight = torch.randn(30, 200) * 2.0**tiny_x, torch.randn(48, 200) * 2.0**tiny_weight
        got = product(placement, x.bfloat16(), weight.bfloat16())
        assert got.abs().max() < 2.0**-45


@pytest.mark.parametrize("kind", KINDS)
def test_few_rows_are_multiplied_as_they_are(placement: Placement, kind: str) -> None:
    weight, x = draw(kind, 64, 256), torch.randn(ROWS - 1, 256).bfloat16()
    torch.testing.assert_close(
        product(placement, x, weight), x.float() @ wide(weight).T, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_rows_beside_it(placement: Placement, kind: str) -> None:
    weight, x = draw(kind, 96, 384), torch.randn(200, 384).bfloat16()
    whole = product(placement, x, weight)
    assert torch.equal(product(placement, x[:ROWS], weight), whole[:ROWS])
    assert torch.equal(product(placement, x[77:177], weight), whole[77:177])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("hidden", "inner"), [(256, 192), (70, 18)])
def test_an_ffn_is_as_exact_as_in_bfloat16(placement: Placement, kind: str, hidden: int, inner: int) -> None:
    experts, top_k, tokens = 4, 2, 300
    parts = {
        name: tuple(
            draw(kind, *lead, *shape) for shape in ((inner, hidden), (inner, hidden), (hidden, inner))
        )
        for name, lead in (("shared", ()), ("experts", (experts,)))
    }
    exact = {
        name: SwiGLU((torch.cat([wide(gate), wide(up)], -2),), wide(down))
        for name, (gate, up, down) in parts.items()
    }
    x = torch.randn(tokens, hidden).bfloat16()
    ids = torch.stack([torch.randperm(experts)[:top_k] for _ in range(tokens)])
    weights = torch.rand(tokens, top_k)
    expected = experts_reference(x.float(), ids, weights, exact["experts"])
    expected += swiglu(x.float(), exact["shared"])

    def error(taken: Placement) -> float:
        packed = {name: CpuSwiGLU.take(taken, *matrices) for name, matrices in parts.items()}
        ffn = PackedFFN(Workspace(taken.library), packed["shared"], packed["experts"])
        return rms(ffn.forward(x, ids, weights).float() - expected)

    as_they_are = error(type(placement)(placement.library))
    assert as_they_are != error(placement) < 1.1 * as_they_are

"""Packed products against torch, for every number of rows that a tile can have and for odd sizes."""

import pytest
import torch
from torch import Tensor

from step3.checkpoint.block_fp8 import dequantise, quantise
from step3.kernels.cpu import Library
from step3.kernels.cpu.attention import packed_linear
from step3.kernels.cpu.weights import InPlace, Packing, Placement, Workspace
from step3.kernels.linear import BlockFp8

SHAPES = [(64, 128), (33, 70), (40, 300), (1, 2), (7, 5), (300, 257)]
ROWS = [*range(1, 14), 25, 200]


def product(placement: Placement, x: Tensor, *weights: Tensor | BlockFp8) -> Tensor:
    return packed_linear(x, placement.take(weights), Workspace(placement.library))


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_weights(placement: Placement, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape).bfloat16()
    for rows in ROWS:
        x = torch.randn(rows, shape[1]).bfloat16()
        torch.testing.assert_close(
            product(placement, x, weight), x.float() @ weight.float().T, rtol=1e-5, atol=1e-4
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_block_fp8_is_expanded_exactly(placement: Placement, shape: tuple[int, int]) -> None:
    q, scale = quantise(torch.randn(shape))
    for rows in ROWS:
        x = torch.randn(rows, shape[1]).bfloat16()
        expected = x.float() @ dequantise(q, scale).T
        torch.testing.assert_close(product(placement, x, BlockFp8(q, scale)), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 12, 30])
def test_every_fp8_value(placement: Placement, rows: int) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    scale, x = torch.ones(2, 1), torch.ones(rows, 1).bfloat16()
    got = product(placement, x, BlockFp8(values[:, None], scale))
    assert torch.equal(got.nan_to_num(1e6), values.float().nan_to_num(1e6).expand(rows, -1))


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 12, 30])
def test_a_nan_of_fp8_stays_in_its_column(placement: Placement, rows: int) -> None:
    q, scale = quantise(torch.randn(48, 200))
    q[37, 131] = torch.nan
    got = product(placement, torch.randn(rows, 200).bfloat16(), BlockFp8(q, scale))
    assert got[:, 37].isnan().all()
    assert got.isnan().sum() == rows


@pytest.mark.parametrize("place", [(0, 0), (47, 199)])
def test_packing_tells_of_a_nan_where_products_do_not_show_it(
    library: Library, place: tuple[int, int]
) -> None:
    q, scale = quantise(torch.randn(48, 200))
    assert not Packing(library).take([BlockFp8(q, scale)]).matrix.may_be_nan
    q[place] = -torch.nan
    assert bool(Packing(library).take([BlockFp8(q, scale)]).matrix.may_be_nan) == (library.level == "avx2")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes_are_rounded_to_bfloat16(library: Library, dtype: torch.dtype) -> None:
    weight, x = torch.randn(50, 66).to(dtype), torch.randn(3, 66).bfloat16()
    expected = x.float() @ weight.bfloat16().float().T
    torch.testing.assert_close(product(Packing(library), x, weight), expected, rtol=1e-5, atol=1e-4)


def test_matrices_below_each_other(placement: Placement) -> None:
    weights, x = [torch.randn(rows, 64).bfloat16() for rows in (48, 16, 21)], torch.randn(4, 64).bfloat16()
    expected = x.float() @ torch.cat(weights).float().T
    torch.testing.assert_close(product(placement, x, *weights), expected, rtol=1e-5, atol=1e-4)


def test_seams_may_cut_block_fp8_anywhere_between_strips(placement: Placement) -> None:
    weights = [BlockFp8(*quantise(torch.randn(rows, 200))) for rows in (144, 48)]
    x = torch.randn(4, 200).bfloat16()
    expected = x.float() @ torch.cat([dequantise(weight.q, weight.scale) for weight in weights]).T
    torch.testing.assert_close(product(placement, x, *weights), expected, rtol=1e-5, atol=1e-4)


def test_packs_a_strided_view(placement: Placement) -> None:
    whole, x = torch.randn(40, 300).bfloat16(), torch.randn(2, 100).bfloat16()
    expected = x.float() @ whole[:, 128:228].float().T
    torch.testing.assert_close(product(placement, x, whole[:, 128:228]), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("quantised", [False, True], ids=["plain", "block-fp8"])
def test_a_row_does_not_depend_on_the_rows_beside_it(placement: Placement, quantised: bool) -> None:
    weight = torch.randn(96, 384)
    stored = BlockFp8(*quantise(weight)) if quantised else weight.bfloat16()
    packed, workspace = placement.take((stored,)), Workspace(placement.library)
    x = torch.randn(40, 384).bfloat16()
    together = packed_linear(x, packed, workspace)
    for rows in (1, 2, 5, 11, 24):
        assert torch.equal(packed_linear(x[:rows], packed, workspace), together[:rows])


@pytest.mark.parametrize("quantised", [False, True], ids=["plain", "block-fp8"])
def test_long_rows_are_sliced_and_give_the_same_sums(placement: Placement, quantised: bool) -> None:
    weight = torch.randn(300, 4500)
    stored = BlockFp8(*quantise(weight)) if quantised else weight.bfloat16()
    packed, workspace = placement.take((stored,)), Workspace(placement.library)
    x = torch.randn(330, 4500).bfloat16()
    together = packed_linear(x, packed, workspace)
    exact = dequantise(stored.q, stored.scale) if isinstance(stored, BlockFp8) else stored.float()
    torch.testing.assert_close(together, x.float() @ exact.T, rtol=1e-5, atol=1e-3)
    for rows in (1, 20, 45, 130):
        assert torch.equal(packed_linear(x[:rows], packed, workspace), together[:rows])


def test_nan_stays_nan(placement: Placement) -> None:
    x = torch.zeros(2, 64).bfloat16()
    x[1, 3] = torch.nan
    got = product(placement, x, torch.ones(32, 64).bfloat16())
    assert not got[0].isnan().any()
    assert got[1].isnan().all()


def test_takes_no_more_memory_than_the_weights(library: Library) -> None:
    weight = torch.randn(256, 512)
    assert Packing(library).take((weight.bfloat16(),)).nbytes == weight.numel() * 2
    quantised = BlockFp8(*quantise(weight))
    assert Packing(library).take((quantised,)).nbytes <= 1.01 * quantised.q.nbytes


@pytest.mark.parametrize("quantised", [False, True], ids=["plain", "block-fp8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_sums_in_place_are_those_of_packed_weights(
    library: Library, shape: tuple[int, int], quantised: bool
) -> None:
    weight = torch.randn(shape)
    stored = BlockFp8(*quantise(weight)) if quantised else weight.bfloat16()
    for rows in ROWS:
        x = torch.randn(rows, shape[1]).bfloat16()
        packed, in_place = (product(placement(library), x, stored) for placement in (Packing, InPlace))
        assert torch.equal(packed, in_place)


def test_weights_in_place_stay_where_they_are(library: Library) -> None:
    weight = torch.randn(256, 512).bfloat16()
    held = InPlace(library).take((weight,))
    assert held.matrix.panels == weight.data_ptr()
    assert held.nbytes == weight.nbytes


def test_weights_in_place_outlive_their_tensors(library: Library) -> None:
    x = torch.randn(3, 64).bfloat16()
    weight = torch.randn(40, 64).bfloat16()
    expected = x.float() @ weight.float().T
    held = InPlace(library).take((weight,))
    del weight
    torch.randn(40, 64)
    got = packed_linear(x, held, Workspace(library))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)

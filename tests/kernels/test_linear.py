"""Products with plain and block-fp8 weights, apart and fused."""

import pytest
import torch
from torch import Tensor

from step3.checkpoint.block_fp8 import dequantise, quantise
from step3.kernels.linear import BlockFp8, expand, fuse, linear, stacked_linear


def block_fp8(*shape: int) -> BlockFp8:
    return BlockFp8(*quantise(torch.randn(*shape)))


@pytest.mark.parametrize("shape", [(256, 128), (200, 300), (3, 256, 384), (2, 64, 100)])
def test_expands_block_fp8_as_the_checkpoint_does(shape: tuple[int, ...]) -> None:
    weight = block_fp8(*shape)
    assert torch.equal(expand(weight, torch.float32), dequantise(weight.q, weight.scale))


def test_rounds_an_expanded_weight_once() -> None:
    weight = block_fp8(128, 128)
    assert torch.equal(expand(weight, torch.bfloat16), dequantise(weight.q, weight.scale).to(torch.bfloat16))


def test_multiplies_in_the_dtype_of_the_activations() -> None:
    weight, x = block_fp8(256, 128), torch.randn(3, 128)
    torch.testing.assert_close(linear(x, weight), x @ dequantise(weight.q, weight.scale).T)
    assert linear(x.bfloat16(), weight).dtype == torch.bfloat16


@pytest.mark.parametrize("columns", [64, 100, 1024])
def test_a_row_does_not_depend_on_how_many_there_are(columns: int) -> None:
    weight, x = torch.randn(300, columns), torch.randn(200, columns)
    whole = linear(x, weight)
    for rows in [*range(1, 20), 33, 67]:
        assert torch.equal(linear(x[7 : 7 + rows], weight), whole[7 : 7 + rows])


def test_a_row_does_not_depend_on_its_place() -> None:
    weight, row = torch.randn(67, 333), torch.randn(1, 333)
    assert (linear(row.expand(75, -1), weight) == linear(row, weight)).all()


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (33, 70), (130, 300)])
def test_multiplies_float32_of_any_shape(shape: tuple[int, int]) -> None:
    for rows in (1, 4, 7, 100):
        x, weight = torch.randn(rows, shape[1]), torch.randn(shape)
        expected = (x.double() @ weight.double().T).float()
        torch.testing.assert_close(linear(x, weight), expected, rtol=1e-5, atol=1e-4)


def rows_of(weights: list[Tensor | BlockFp8], x: Tensor) -> Tensor:
    return torch.cat([linear(x, weight) for weight in weights], -1)


def test_fuses_plain_matrices_into_one() -> None:
    weights: list[Tensor | BlockFp8] = [torch.randn(5, 16), torch.randn(3, 16)]
    fused, x = fuse(weights), torch.randn(4, 16)
    assert len(fused) == 1
    torch.testing.assert_close(stacked_linear(x, fused), rows_of(weights, x))


def test_fuses_block_fp8_where_seams_lie_between_blocks() -> None:
    weights: list[Tensor | BlockFp8] = [block_fp8(256, 200), block_fp8(128, 200), block_fp8(70, 200)]
    fused, x = fuse(weights), torch.randn(4, 200)
    assert len(fused) == 1
    torch.testing.assert_close(stacked_linear(x, fused), rows_of(weights, x))


def test_leaves_block_fp8_apart_where_a_seam_would_cut_a_block() -> None:
    weights: list[Tensor | BlockFp8] = [block_fp8(64, 128), block_fp8(128, 128)]
    fused, x = fuse(weights), torch.randn(4, 128)
    assert len(fused) == 2
    torch.testing.assert_close(stacked_linear(x, fused), rows_of(weights, x))


def test_leaves_plain_and_block_fp8_apart() -> None:
    weights: list[Tensor | BlockFp8] = [torch.randn(128, 128), block_fp8(128, 128)]
    assert len(fuse(weights)) == 2


def test_fuses_stacks_of_experts() -> None:
    gate, up, x = block_fp8(3, 128, 256), block_fp8(3, 128, 256), torch.randn(2, 256)
    (both,) = fuse((gate, up))
    torch.testing.assert_close(linear(x, both[1]), rows_of([gate[1], up[1]], x))

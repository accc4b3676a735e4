"""Products of 8-bit integers against the same quantisation in torch, and how much it loses."""

import pytest
import torch
from torch import Tensor

from step3.checkpoint.block_fp8 import dequantise, quantise
from step3.kernels.cpu import INTEGER_LEVELS, Library
from step3.kernels.cpu.attention import packed_linear
from step3.kernels.cpu.ffn import CpuSwiGLU, PackedFFN
from step3.kernels.cpu.weights import InPlace, Packing, Placement, Workspace
from step3.kernels.experts import SwiGLU, experts_reference, swiglu
from step3.kernels.linear import BLOCK, BlockFp8

ROWS = 48
"""From here on rows are quantised (NARROW_ROWS of narrow.h)."""
SHAPES = [(64, 128), (33, 300), (40, 70), (288, 256), (300, 4500)]


@pytest.fixture(params=[Packing, InPlace], ids=["packed", "in-place"])
def placement(request: pytest.FixtureRequest, library: Library) -> Placement:
    if library.level not in INTEGER_LEVELS[8]:
        pytest.skip(f"{library.level} has no products of 8-bit integers")
    return request.param(library, integers=8)


def quantised_product(x: Tensor, weight: BlockFp8) -> Tensor:
    """What the kernel should give: sums of integers for each 128 columns, scaled in float32."""
    total = torch.zeros(x.shape[0], weight.q.shape[0])
    whole = weight.q.float()
    narrow = whole.sign() * (whole.abs() * (127 / 448) + 0.5).floor()
    scales = weight.scale.repeat_interleave(BLOCK, 0)[: len(whole)]
    for block, begin in enumerate(range(0, x.shape[1], BLOCK)):
        part = x[:, begin : begin + BLOCK].float()
        most = part.abs().amax(-1, keepdim=True)
        levels = (part * (torch.tensor(127.0) / most).nan_to_num(0, 0, 0)).round()
        sums = levels @ narrow[:, begin : begin + BLOCK].T
        total += sums * scales[:, block] * (most * (448 / 127**2))
    return total


def draw(*shape: int) -> BlockFp8:
    return BlockFp8(*quantise(torch.randn(*shape) / shape[-1] ** 0.5))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [ROWS, ROWS + 5, 300])
def test_is_the_quantised_product(placement: Placement, shape: tuple[int, int], rows: int) -> None:
    weight, x = draw(*shape), torch.randn(rows, shape[1]).bfloat16()
    x[3] = 0
    got = packed_linear(x, placement.take((weight,)), Workspace(placement.library))
    torch.testing.assert_close(got, quantised_product(x, weight), rtol=1e-4, atol=1e-5)
    assert not got[3].any()


def test_few_rows_and_plain_weights_are_not_quantised(placement: Placement) -> None:
    weight, x = draw(64, 256), torch.randn(ROWS, 256).bfloat16()
    few = packed_linear(x[:-1], placement.take((weight,)), Workspace(placement.library))
    torch.testing.assert_close(
        few, x[:-1].float() @ dequantise(weight.q, weight.scale).T, rtol=1e-5, atol=1e-5
    )
    plain = torch.randn(64, 256).bfloat16()
    got = packed_linear(x, placement.take((plain,)), Workspace(placement.library))
    torch.testing.assert_close(got, x.float() @ plain.float().T, rtol=1e-5, atol=1e-4)


def test_a_row_does_not_depend_on_the_rows_beside_it(placement: Placement) -> None:
    weight, x = placement.take((draw(96, 384),)), torch.randn(200, 384).bfloat16()
    workspace = Workspace(placement.library)
    whole = packed_linear(x, weight, workspace)
    assert torch.equal(packed_linear(x[:ROWS], weight, workspace), whole[:ROWS])
    assert torch.equal(packed_linear(x[77:177], weight, workspace), whole[77:177])


@pytest.mark.parametrize(("hidden", "inner"), [(256, 192), (70, 18)])
def test_an_ffn_loses_little(placement: Placement, hidden: int, inner: int) -> None:
    """Both products round to about a hundredth of what is usual in a block, much as fp8 weights did."""
    experts, top_k, tokens = 4, 2, 300
    parts = {
        name: tuple(draw(*lead, *shape) for shape in ((inner, hidden), (inner, hidden), (hidden, inner)))
        for name, lead in (("shared", ()), ("experts", (experts,)))
    }
    packed = {name: CpuSwiGLU.take(placement, *weights) for name, weights in parts.items()}
    wide = {
        name: SwiGLU(
            (torch.cat([dequantise(w.q, w.scale) for w in (gate, up)], -2),), dequantise(down.q, down.scale)
        )
        for name, (gate, up, down) in parts.items()
    }
    x = torch.randn(tokens, hidden).bfloat16()
    ids = torch.stack([torch.randperm(experts)[:top_k] for _ in range(tokens)])
    weights = torch.rand(tokens, top_k)
    expected = experts_reference(x.float(), ids, weights, wide["experts"]) + swiglu(x.float(), wide["shared"])
    ffn = PackedFFN(Workspace(placement.library), packed["shared"], packed["experts"])
    error = ffn.forward(x, ids, weights).float() - expected
    assert error.square().mean().sqrt() < 0.03 * expected.square().mean().sqrt()

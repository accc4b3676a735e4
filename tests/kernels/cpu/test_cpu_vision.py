"""The vision tower's layers against torch in float32."""

import pytest
import torch
from torch.nn import functional as F

from step3.kernels.cpu.vision import PackedDense, picture_attention, picture_mlp
from step3.kernels.cpu.weights import Placement, Workspace


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


class Layer:
    """A linear layer, packed and in float32."""

    def __init__(self, placement: Placement, rows: int, columns: int, *, has_bias: bool = True) -> None:
        self.weight = (torch.randn(rows, columns) / columns**0.5).bfloat16()
        self.bias = torch.randn(rows).bfloat16() if has_bias else None
        self.packed = PackedDense(placement, self.weight, self.bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.float(), self.weight.float(), None if self.bias is None else self.bias.float())


@pytest.mark.parametrize(("rows", "columns"), [(96, 64), (40, 70), (17, 33)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_dense_layer(placement: Placement, rows: int, columns: int, has_bias: bool) -> None:
    layer, workspace = Layer(placement, rows, columns, has_bias=has_bias), Workspace(placement.library)
    for shape in ((1, columns), (3, 29, columns)):
        x = torch.randn(shape).bfloat16()
        got = layer.packed.forward(x, workspace)
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.float(), layer(x), rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize(("hidden", "inner"), [(64, 96), (70, 40), (112, 273)])
@pytest.mark.parametrize("rows", [1, 87, 2077])
def test_an_mlp(placement: Placement, hidden: int, inner: int, rows: int) -> None:
    """2,077 rows go through it in two parts."""
    first, second = Layer(placement, inner, hidden), Layer(placement, hidden, inner)
    x = torch.randn(rows, hidden).bfloat16()
    got = picture_mlp(first.packed, second.packed, x, Workspace(placement.library))
    expected = second(quick_gelu(first(x)).bfloat16())
    torch.testing.assert_close(got.float(), expected, rtol=1e-2, atol=1e-2)


def attended(qkv: Layer, out_proj: Layer, x: torch.Tensor, heads: int) -> torch.Tensor:
    projected = qkv(x).bfloat16().float().unflatten(2, (3, heads, -1))
    mixed = F.scaled_dot_product_attention(*projected.permute(2, 0, 3, 1, 4))
    return out_proj(mixed.transpose(1, 2).flatten(2).bfloat16())


@pytest.mark.parametrize(
    ("pictures", "length", "heads", "size"), [(1, 1, 1, 16), (2, 37, 3, 48), (1, 148, 4, 112), (3, 64, 3, 6)]
)
def test_attention(placement: Placement, pictures: int, length: int, heads: int, size: int) -> None:
    hidden = heads * size
    qkv, out_proj = Layer(placement, 3 * hidden, hidden), Layer(placement, hidden, hidden)
    x = torch.randn(pictures, length, hidden).bfloat16()
    got = picture_attention(qkv.packed, out_proj.packed, x, heads, Workspace(placement.library))
    torch.testing.assert_close(got.float(), attended(qkv, out_proj, x, heads), rtol=1e-2, atol=2e-2)


def test_attention_of_large_scores(placement: Placement) -> None:
    """The largest score is taken away before e is raised to it."""
    qkv, out_proj = Layer(placement, 192, 64, has_bias=False), Layer(placement, 64, 64)
    qkv.weight[:128] *= 40
    qkv.packed = PackedDense(placement, qkv.weight, None)
    x = torch.randn(1, 50, 64).bfloat16()
    got = picture_attention(qkv.packed, out_proj.packed, x, 2, Workspace(placement.library))
    torch.testing.assert_close(got.float(), attended(qkv, out_proj, x, 2), rtol=2e-2, atol=4e-2)


def test_a_picture_does_not_depend_on_those_beside_it(placement: Placement) -> None:
    qkv, out_proj = Layer(placement, 288, 96), Layer(placement, 96, 96)
    x, workspace = torch.randn(3, 61, 96).bfloat16(), Workspace(placement.library)
    together = picture_attention(qkv.packed, out_proj.packed, x, 2, workspace)
    for picture in range(3):
        alone = picture_attention(qkv.packed, out_proj.packed, x[picture : picture + 1], 2, workspace)
        assert torch.equal(alone[0], together[picture])

"""The vision tower's products and attention against torch in float32."""

import pytest
import torch
from torch.nn import functional as F

from step3.kernels.cpu import Library
from step3.kernels.cpu.vision import PackedDense, attend_picture
from step3.kernels.cpu.weights import Placement, Workspace


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


@pytest.mark.parametrize(("rows", "columns"), [(96, 64), (40, 70), (17, 33)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_dense_layer(placement: Placement, rows: int, columns: int, has_bias: bool) -> None:
    weight = (torch.randn(rows, columns) / columns**0.5).bfloat16()
    bias = torch.randn(rows).bfloat16() if has_bias else None
    dense, workspace = PackedDense(placement, weight, bias), Workspace(placement.library)
    for shape in ((1, columns), (3, 29, columns)):
        x = torch.randn(shape).bfloat16()
        expected = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
        got = dense.forward(x, workspace)
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.float(), expected, rtol=5e-3, atol=1e-4)
        active = dense.forward(x, workspace, quick_gelu=True)
        torch.testing.assert_close(active.float(), quick_gelu(expected), rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("pictures", "length", "heads", "size"), [(1, 1, 1, 16), (2, 37, 3, 48), (1, 148, 4, 112), (3, 64, 2, 8)]
)
def test_attention(library: Library, pictures: int, length: int, heads: int, size: int) -> None:
    qkv = torch.randn(pictures, length, 3, heads, size).bfloat16()
    got = attend_picture(qkv, Workspace(library))
    query, key, value = qkv.float().permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(got.float(), expected, rtol=1e-2, atol=1e-2)


def test_attention_of_large_scores(library: Library) -> None:
    """The largest score is taken away before e is raised to it."""
    qkv = torch.randn(1, 50, 3, 2, 32).bfloat16()
    qkv[:, :, :2] *= 40
    got = attend_picture(qkv, Workspace(library)).float()
    query, key, value = qkv.float().permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


def test_a_picture_does_not_depend_on_those_beside_it(library: Library) -> None:
    qkv = torch.randn(3, 61, 3, 2, 48).bfloat16()
    workspace = Workspace(library)
    together = attend_picture(qkv, workspace)
    for picture in range(3):
        assert torch.equal(attend_picture(qkv[picture : picture + 1], workspace)[0], together[picture])

"""What the CPU kernels leave to torch in the tower: heads of an odd size, activations but quick GELU."""

import pytest
import torch
from torch import Tensor

from step3.engine.vision_products import KernelProducts, TorchProducts, VisionProducts
from step3.kernels.cpu import open_library
from step3.kernels.cpu.weights import Packing


def draw(names: dict[str, tuple[int, int]]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    weights = {f"{name}.weight": (torch.randn(shape) / shape[1] ** 0.5) for name, shape in names.items()}
    weights |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in names.items()}
    return {name: weight.bfloat16() for name, weight in weights.items()}


def both(weights: dict[str, Tensor], hidden_act: str) -> tuple[VisionProducts, VisionProducts]:
    library = open_library()
    if library is None:
        pytest.skip("the CPU kernels are not there")
    exact = {name: weight.float() for name, weight in weights.items()}
    return KernelProducts(Packing(library), weights, hidden_act), TorchProducts(exact, hidden_act)


@pytest.mark.parametrize("size", [7, 16])
def test_attention_takes_heads_of_any_size(size: int) -> None:
    hidden = 4 * size
    weights = draw({"self_attn.qkv_proj": (3 * hidden, hidden), "self_attn.out_proj": (hidden, hidden)})
    kernels, exact = both(weights, "quick_gelu")
    rows = torch.randn(2, 37, hidden).bfloat16()
    expected = exact.attend("self_attn", rows.float(), 4)
    torch.testing.assert_close(kernels.attend("self_attn", rows, 4).float(), expected, rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_an_mlp_goes_through_the_activation_of_the_tower(hidden_act: str) -> None:
    kernels, exact = both(draw({"mlp.fc1": (96, 64), "mlp.fc2": (64, 96)}), hidden_act)
    rows = torch.randn(2, 37, 64).bfloat16()
    expected = exact.mlp("mlp", rows.float())
    torch.testing.assert_close(kernels.mlp("mlp", rows).float(), expected, rtol=1e-2, atol=1e-2)

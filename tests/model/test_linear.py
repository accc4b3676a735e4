import pytest
import torch
from torch import Tensor, nn

from step3.model.linear import (
    BlockFp8ExpertLinear,
    BlockFp8Linear,
    ExpertLinear,
    dequantise,
    expand_blocks,
    expert_linear,
    leave_plain,
    linear,
)

BLOCK = (4, 3)


def drawn(layer: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    layer.weight.data = torch.randn(layer.weight.shape, generator=generator).to(layer.weight.dtype)
    if hasattr(layer, "weight_scale_inv"):
        layer.weight_scale_inv.data = torch.rand(layer.weight_scale_inv.shape, generator=generator) + 0.5
    return layer


def by_hand(weight: Tensor, scale: Tensor) -> Tensor:
    out = torch.empty(weight.shape, dtype=torch.float64)
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            out[row, column] = (
                weight[row, column].double() * scale[row // BLOCK[0], column // BLOCK[1]].double()
            )
    return out


class TestBlocks:
    def test_that_do_not_divide_the_matrix_are_cut_off_at_its_edge(self) -> None:
        layer = drawn(BlockFp8Linear(7, 10, BLOCK))
        assert layer.weight_scale_inv.shape == (3, 3)
        dense = expand_blocks(layer.weight, layer.weight_scale_inv, BLOCK, torch.float32)
        torch.testing.assert_close(
            dense.double(), by_hand(layer.weight, layer.weight_scale_inv), rtol=1e-6, atol=0
        )

    def test_are_scaled_in_float32_and_rounded_once(self) -> None:
        layer = drawn(BlockFp8Linear(6, 8, BLOCK))
        wide = layer.dense_weight(torch.float32)
        assert torch.equal(layer.dense_weight(torch.bfloat16), wide.bfloat16())


class TestBlockFp8Linear:
    def test_multiplies_by_the_expanded_weight(self) -> None:
        layer = drawn(BlockFp8Linear(7, 10, BLOCK))
        x = torch.randn(2, 5, 7)
        expected = x.double() @ by_hand(layer.weight, layer.weight_scale_inv).T
        torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=1e-5)

    def test_passes_gradients_through_to_its_input(self) -> None:
        layer = drawn(BlockFp8Linear(7, 10, BLOCK))
        x = torch.randn(3, 7, requires_grad=True)
        layer(x).sum().backward()
        torch.testing.assert_close(x.grad, layer.dense_weight(torch.float32).sum(0).expand(3, 7))


@pytest.mark.parametrize("block", [None, BLOCK])
class TestExpertLinear:
    def test_multiplies_each_experts_rows_by_its_matrix(self, block: tuple[int, int] | None) -> None:
        layer = drawn(expert_linear(3, 7, 5, block))
        x = torch.randn(6, 7)
        out = layer(x, [2, 0, 4])
        dense = layer.weight if block is None else layer.dense_weight(torch.float32)
        torch.testing.assert_close(out[:2], x[:2] @ dense[0].T, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(out[2:], x[2:] @ dense[2].T, atol=1e-6, rtol=1e-5)

    def test_without_rows(self, block: tuple[int, int] | None) -> None:
        assert drawn(expert_linear(3, 7, 5, block))(torch.zeros(0, 7), [0, 0, 0]).shape == (0, 5)


class TestDequantise:
    def test_gives_plain_trainable_layers_that_compute_the_same(self) -> None:
        model = nn.ModuleDict(
            {"dense": drawn(linear(7, 10, BLOCK)), "experts": drawn(expert_linear(3, 7, 5, BLOCK))}
        )
        x = torch.randn(6, 7)
        before = model["dense"](x), model["experts"](x, [1, 2, 3])

        dequantise(model, torch.float32)

        assert type(model["dense"]) is nn.Linear
        assert type(model["experts"]) is ExpertLinear
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert torch.equal(model["dense"](x), before[0])
        assert torch.equal(model["experts"](x, [1, 2, 3]), before[1])

    def test_leaves_plain_layers_alone(self) -> None:
        model = nn.ModuleList([linear(7, 10, None), expert_linear(3, 7, 5, None)])
        layers = list(model)
        dequantise(model, torch.bfloat16)
        assert list(model) == layers
        assert model[0].weight.dtype == torch.float32


class TestLeavePlain:
    def test_takes_the_layers_whose_official_name_holds_a_part(self) -> None:
        model = nn.ModuleDict(
            {"mlp": nn.ModuleDict({"up": linear(7, 10, BLOCK), "down": linear(10, 7, BLOCK)})}
        )
        leave_plain(model, "model.layers.0.", ["layers.0.mlp.up"])
        assert type(model["mlp"]["up"]) is nn.Linear
        assert model["mlp"]["up"].weight.shape == (10, 7)
        assert type(model["mlp"]["down"]) is BlockFp8Linear

    def test_leaves_experts_plain_too(self) -> None:
        model = nn.ModuleDict({"moe": expert_linear(3, 7, 5, BLOCK)})
        leave_plain(model, "", ["moe"])
        assert type(model["moe"]) is ExpertLinear


def test_layers_say_their_sizes() -> None:
    assert (
        repr(BlockFp8Linear(7, 10, BLOCK)) == "BlockFp8Linear(in_features=7, out_features=10, block=(4, 3))"
    )
    assert repr(BlockFp8ExpertLinear(3, 7, 5, BLOCK)).startswith(
        "BlockFp8ExpertLinear(num_experts=3, in_features=7"
    )

from typing import Any

import pytest
import reference
import torch
from small import text_config, text_model, tokens
from torch import Tensor

from step3.errors import Step3Error
from step3.model.layers_step3 import Step3MoE, Step3RMSNorm, Step3RotaryEmbedding


def hidden(rows: int, size: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def drawn_moe(**changes: Any) -> Step3MoE:
    return text_model(**changes).model.layers[1].moe


class TestNorm:
    def test_bfloat16_is_rounded_once_before_the_weight(self) -> None:
        norm = Step3RMSNorm(16, 1e-5).bfloat16()
        norm.weight.data = hidden(1)[0].bfloat16()
        x = hidden(4).bfloat16()
        wide = x.double()
        normed = (wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()).float().bfloat16()
        assert torch.equal(norm(x), norm.weight * normed)


class TestExperts:
    @pytest.mark.parametrize("renormalise", [False, True])
    @pytest.mark.parametrize("top_k", [1, 3, 6])
    def test_are_a_plain_weighted_sum(self, top_k: int, renormalise: bool) -> None:
        changes = {"moe_num_experts": 6, "moe_top_k": top_k, "norm_expert_weight": renormalise}
        moe = drawn_moe(**changes)
        x = hidden(33)
        tensors = {f"moe.{name}": tensor.detach().double() for name, tensor in moe.state_dict().items()}

        routed, _ = moe(x)

        expected = reference.experts(x.double(), changes, tensors, "moe")
        torch.testing.assert_close(routed.double(), expected, atol=1e-5, rtol=1e-5)

    def test_without_a_token_do_no_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        moe = drawn_moe(moe_num_experts=4, moe_top_k=1)
        steer(moe, 2)
        multiplied: list[tuple[int, ...]] = []
        original = torch.nn.functional.linear

        def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            multiplied.append((x.shape[0], *weight.shape))
            return original(x, weight, bias)

        monkeypatch.setattr(torch.nn.functional, "linear", counted)
        moe(hidden(5).abs())

        # The router over all tokens, then one expert's three matrices.
        assert multiplied == [(5, 4, 16), (5, 8, 16), (5, 8, 16), (5, 16, 8)]

    def test_all_tokens_to_one_expert(self) -> None:
        moe = drawn_moe(moe_num_experts=4, moe_top_k=1)
        steer(moe, 3)
        x = hidden(7).abs()
        routed, logits = moe(x)
        gate, up, down = (part.weight[3] for part in (moe.gate_proj, moe.up_proj, moe.down_proj))
        expected = reference.swiglu(x, gate, up, down) * logits.softmax(-1)[:, 3:]
        torch.testing.assert_close(routed, expected, atol=1e-5, rtol=1e-5)

    def test_no_tokens_give_no_rows(self) -> None:
        routed, logits = drawn_moe()(hidden(0))
        assert routed.shape == (0, 16)
        assert logits.shape == (0, 4)

    def test_of_a_token_do_not_depend_on_the_tokens_around_it(self) -> None:
        moe = drawn_moe()
        x = hidden(40)
        together, _ = moe(x)
        for row in range(0, 40, 7):
            torch.testing.assert_close(moe(x[row : row + 1])[0][0], together[row], atol=1e-5, rtol=0)
        order = torch.randperm(40)
        torch.testing.assert_close(moe(x[order])[0], together[order], atol=1e-5, rtol=0)

    def test_are_routed_in_float32_whatever_the_weights_are(self) -> None:
        moe = drawn_moe().bfloat16()
        x = hidden(9).bfloat16()
        logits = moe(x)[1]
        assert logits.dtype == torch.float32
        expected = x.double() @ moe.gate.weight.double().T
        torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=0)

    def test_gradient_of_an_unused_expert_is_zero(self) -> None:
        moe = drawn_moe(moe_num_experts=4, moe_top_k=1)
        steer(moe, 1)
        moe(hidden(5).abs())[0].sum().backward()
        used = moe.up_proj.weight.grad.flatten(1).any(dim=1)
        assert used.tolist() == [False, True, False, False]


def steer(moe: Step3MoE, expert: int) -> None:
    """Sends every token with positive values to one expert."""
    moe.gate.weight.data.zero_()
    moe.gate.weight.data[expert] = 1


class TestRotaryEmbedding:
    def test_scaling_that_cannot_work_is_refused_when_the_network_is_made(self) -> None:
        with pytest.raises(Step3Error, match="'spiral' is not known"):
            text_model(rope_scaling={"rope_type": "spiral", "factor": 2})

    def test_keeps_no_state_to_load(self) -> None:
        assert not list(Step3RotaryEmbedding(text_config()).state_dict())

    def test_scaling_of_the_config_reaches_the_attention(self) -> None:
        ids = tokens(1, 12)
        plain, linear = (
            text_model(rope_scaling=scaling)(input_ids=ids).logits
            for scaling in (None, {"type": "linear", "factor": 2.0})
        )
        halved = text_model()(input_ids=ids, position_ids=torch.arange(12)[None] / 2).logits
        torch.testing.assert_close(linear, halved, atol=1e-5, rtol=0)
        assert (plain - linear).abs().max() > 1e-3

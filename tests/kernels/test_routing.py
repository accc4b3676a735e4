import pytest
import torch
from torch import Tensor

from step3.kernels.routing import combine, dispatch, route


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestRoute:
    def test_takes_the_likeliest_best_first_with_their_probabilities(self) -> None:
        logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
        experts, weights = route(logits, 2, renormalise=False)
        assert experts[0].tolist() == [1, 2]
        assert experts[1, 0] == 0
        probabilities = logits.softmax(-1)
        torch.testing.assert_close(weights, probabilities.gather(1, experts))
        assert (weights.sum(-1) < 1).all()

    def test_weights_sum_to_one_where_they_are_renormalised(self) -> None:
        logits = drawn(9, 6)
        plain, weights = (route(logits, 3, renormalise)[1] for renormalise in (False, True))
        torch.testing.assert_close(weights.sum(-1), torch.ones(9))
        torch.testing.assert_close(weights, plain / plain.sum(-1, keepdim=True))

    def test_softmax_is_float32_for_half_precision(self) -> None:
        logits = drawn(5, 6).bfloat16()
        _, weights = route(logits, 2, renormalise=False)
        assert weights.dtype == torch.float32
        torch.testing.assert_close(
            weights.double(), logits.double().softmax(-1).topk(2).values, rtol=1e-6, atol=0
        )


class TestDispatch:
    def test_gathers_pairs_by_expert_and_keeps_the_order_of_tokens(self) -> None:
        plan = dispatch(torch.tensor([[2, 0], [0, 3], [2, 3]]), num_experts=5)
        assert plan.counts == [2, 0, 2, 2, 0]
        assert plan.token.tolist() == [0, 1, 0, 2, 1, 2]
        assert plan.place.tolist() == [2, 0, 1, 4, 3, 5]

    def test_of_no_tokens(self) -> None:
        plan = dispatch(torch.zeros(0, 3, dtype=torch.long), num_experts=4)
        assert plan.counts == [0, 0, 0, 0]
        assert plan.token.numel() == plan.place.numel() == 0


class TestCombine:
    @pytest.mark.parametrize("tokens", [0, 1, 17])
    def test_is_each_tokens_weighted_sum(self, tokens: int) -> None:
        experts = (
            torch.stack([torch.randperm(6)[:3] for _ in range(tokens)])
            if tokens
            else torch.zeros(0, 3).long()
        )
        weights, values = drawn(tokens, 3), drawn(tokens, 3, 4, seed=1)
        plan = dispatch(experts, 6)
        by_expert = torch.empty(tokens * 3, 4)
        by_expert[plan.place] = values.flatten(0, 1)

        out = combine(by_expert, weights, plan)

        torch.testing.assert_close(out, (values * weights[..., None]).sum(1))

    def test_sums_in_float32_and_rounds_once(self) -> None:
        plan = dispatch(torch.tensor([[0, 1, 2]]), 3)
        values = drawn(3, 8).bfloat16()
        weights = torch.tensor([[0.5, 0.3, 0.1]])
        expected = (values.double() * weights[0, :, None].double()).sum(0).float().bfloat16()
        assert torch.equal(combine(values, weights, plan)[0], expected)

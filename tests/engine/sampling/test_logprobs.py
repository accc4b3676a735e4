"""Log-probabilities of chosen tokens, their ranks, and the likeliest tokens."""

import math

import pytest
import torch

from step3.engine.sampling.logprobs import prompt_logprobs, rank_tokens

LOGPROBS = torch.log_softmax(
    torch.tensor([[0.0, 2.0, 1.0, -torch.inf, 2.0], [3.0, 0.0, 0.0, 1.0, 2.0]]), dim=-1
)


def test_the_chosen_token_comes_with_its_rank_and_the_likeliest():
    first, second = rank_tokens(LOGPROBS, torch.tensor([2, 0]), [2, 3])
    assert (first.token_id, first.rank, first.top_ids) == (2, 3, [1, 4])
    assert first.logprob == pytest.approx(float(LOGPROBS[0, 2]))
    assert first.top_logprobs == pytest.approx([float(LOGPROBS[0, 1])] * 2)
    assert (second.rank, second.top_ids) == (1, [0, 4, 3])


def test_equally_likely_tokens_share_a_rank():
    first, second = rank_tokens(LOGPROBS, torch.tensor([4, 2]), [0, 0])
    assert first.rank == 1
    assert second.rank == 4


def test_no_tops_are_told_when_none_are_asked_for():
    assert rank_tokens(LOGPROBS, torch.tensor([0, 0]), [0, 0])[0].top_ids == []


def test_all_are_told_for_minus_one_but_the_impossible():
    first, second = rank_tokens(LOGPROBS, torch.tensor([0, 0]), [-1, 1])
    assert first.top_ids == [1, 4, 2, 0]
    assert second.top_ids == [0]


def test_a_token_without_a_chance_has_minus_infinity():
    assert rank_tokens(LOGPROBS, torch.tensor([3, 0]), [1, 1])[0].logprob == -math.inf


def test_a_prompt_is_scored_position_by_position():
    torch.manual_seed(0)
    logits, targets = torch.randn(700, 7000).bfloat16(), torch.randint(0, 7000, (700,))
    told = prompt_logprobs(logits, targets, 2)
    expected = torch.log_softmax(logits.double(), dim=-1)
    assert len(told) == 700
    for row in (0, 1, 598, 599, 600, 699):
        assert told[row].logprob == pytest.approx(float(expected[row, targets[row]]), abs=1e-5)
        assert told[row].top_logprobs == pytest.approx(expected[row].topk(2).values.tolist(), abs=1e-5)

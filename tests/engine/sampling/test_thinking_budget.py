"""Reasoning ends with its budget, whatever else the parameters ask for."""

import pytest
import torch

from step3.engine.sampling.params import ParamsError, SamplingParams
from step3.engine.sampling.sampler import SamplingBatch, sample
from step3.engine.sampling.state import SamplingState

END, LIKELIEST = 7, 3


def state(budget, thought_end=END, **params):
    params = SamplingParams(thinking_token_budget=budget, max_tokens=None, **params)
    return SamplingState(params, seed=0, vocab_size=10, thought_end=thought_end)


def written(one, steps):
    for _ in range(steps):
        logits = torch.zeros(1, 10)
        logits[0, LIKELIEST] = 5
        [[token]] = sample(logits, SamplingBatch([one])).token_ids
        one.append(token)
    return one.output


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("budget", [0, 1, 4])
def test_the_end_stands_behind_the_last_token_of_the_budget(budget, temperature):
    output = written(state(budget, temperature=temperature, bad_words=None), budget + 3)
    assert output[budget] == END


def test_the_end_comes_once():
    assert written(state(2, temperature=0), 6) == [LIKELIEST, LIKELIEST, END, LIKELIEST, LIKELIEST, LIKELIEST]


def test_reasoning_that_ended_by_itself_is_left_alone():
    one = state(4, temperature=0)
    one.append(END)
    assert written(one, 8) == [END, *[LIKELIEST] * 8]


def test_without_open_reasoning_there_is_nothing_to_end():
    assert written(state(1, thought_end=None, temperature=0), 4) == [LIKELIEST] * 4


def test_other_parameters_do_not_keep_it_from_ending():
    one = state(1, temperature=0, allowed_token_ids=[2, 3], logit_bias={END: -100.0}, min_tokens=5)
    assert written(one, 2) == [LIKELIEST, END]


def test_drafts_are_held_to_the_budget():
    def tried(*drafts):
        one = state(2, temperature=0)
        logits = torch.zeros(1 + len(drafts), 10)
        logits[:, LIKELIEST] = 5
        return sample(logits, SamplingBatch([one]), [list(drafts)]).token_ids[0]

    assert tried(LIKELIEST, LIKELIEST, LIKELIEST) == [LIKELIEST, LIKELIEST, END]
    assert tried(LIKELIEST, LIKELIEST, END, LIKELIEST) == [LIKELIEST, LIKELIEST, END, LIKELIEST, LIKELIEST]


def test_a_budget_below_nothing_is_refused():
    with pytest.raises(ParamsError, match="thinking_token_budget"):
        SamplingParams(thinking_token_budget=-1)

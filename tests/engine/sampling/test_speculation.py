"""How many drafts are tried: as many as pay, by what they cost and how often they are right."""

import itertools
import random

import pytest

from step3.engine.sampling.params import SamplingParams
from step3.engine.sampling.speculation import Speculation, StepTime, StepTimes, draft_lengths
from step3.engine.sampling.state import SamplingState


def rate(lengths, acceptance, step):
    """Expected tokens a second."""
    tokens = sum(sum(a**j for j in range(n + 1)) for n, a in zip(lengths, acceptance, strict=True))
    return tokens / step.of(len(lengths) + sum(lengths))


def test_rows_that_cost_nothing_are_all_used():
    assert draft_lengths([0.1, 0.9], [3, 5], StepTime(1.0, 0.0)) == [3, 5]


def test_rows_that_cost_a_whole_step_are_not():
    assert draft_lengths([0.9, 0.9], [3, 5], StepTime(0.1, 1.0)) == [0, 0]


def test_the_sequence_that_is_easier_to_guess_gets_more_drafts():
    low, high = draft_lengths([0.4, 0.9], [8, 8], StepTime(1.0, 0.15))
    assert low < high


def test_no_drafts_no_rows():
    assert draft_lengths([0.9, 0.9], [0, 0], StepTime(1.0, 0.0)) == [0, 0]
    assert draft_lengths([], [], StepTime(1.0, 0.0)) == []


@pytest.mark.parametrize("seed", range(40))
def test_no_other_lengths_are_faster(seed):
    rng = random.Random(seed)
    acceptance = [rng.random() for _ in range(3)]
    step = StepTime(1.0, rng.choice([0.02, 0.1, 0.3, 0.6]))
    best = max(itertools.product(range(5), repeat=3), key=lambda lengths: rate(lengths, acceptance, step))
    chosen = draft_lengths(acceptance, [4, 4, 4], step)
    assert rate(chosen, acceptance, step) == pytest.approx(rate(best, acceptance, step))


def test_the_cost_of_a_row_is_learned_from_steps_of_different_size():
    times, rng = StepTimes(), random.Random(0)
    for _ in range(300):
        rows = rng.randint(8, 40)
        times.observe(rows, (10 + 0.5 * rows) * rng.uniform(0.98, 1.02))
    estimate = times.estimate()
    assert estimate.per_row == pytest.approx(0.5, rel=0.15)
    assert estimate.of(20) == pytest.approx(20, rel=0.05)


def test_steps_of_one_size_change_the_level_but_not_the_cost_of_a_row():
    times = StepTimes()
    for rows in (8, 16) * 50:
        times.observe(rows, 10 + rows)
    for _ in range(500):
        times.observe(8, 28)
    assert times.estimate().per_row == pytest.approx(1.0, rel=0.1)
    assert times.estimate().of(8) == pytest.approx(28, rel=0.01)


def test_before_the_first_step_nothing_costs():
    assert StepTimes().estimate() == StepTime(0.0, 0.0)


def test_a_row_never_costs_more_than_its_share_or_less_than_nothing():
    times = StepTimes()
    for rows, seconds in ((10, 1.0), (20, 9.0), (10, 1.0), (20, 9.0)) * 10:
        times.observe(rows, seconds)
    assert times.estimate().fixed >= 0
    falling = StepTimes()
    for rows, seconds in ((10, 9.0), (20, 1.0)) * 10:
        falling.observe(rows, seconds)
    assert falling.estimate().per_row == 0


def run(speculation, text, steps, per_row, start=40):
    """Decodes a known text with one sequence; returns the drafts tried at each step."""
    tokens = list(text[:start])
    source, tried = speculation.source(tokens), []
    for _ in range(steps):
        (drafts,) = speculation.draft([source])
        ahead = text[len(tokens) : len(tokens) + len(drafts) + 1]
        right = 0
        while right < len(drafts) and drafts[right] == ahead[right]:
            right += 1
        tokens += ahead[: right + 1]
        rows = 1 + len(drafts)
        speculation.observe(rows, 1.0 + per_row * rows, len(drafts), right)
        tried.append(len(drafts))
    return tried


REPEATED = random.Random(1).sample(range(1000), 30) * 1500


def noisy():
    """A text in which the last tokens always stood before, but never with the same continuation."""
    rng, text = random.Random(2), []
    for _ in range(6000):
        text += [1, 2, 3, rng.randrange(10, 10**6)]
    return text


def test_a_repeated_text_is_drafted_and_the_counts_say_so():
    speculation = Speculation(limit=5)
    tried = run(speculation, REPEATED, 100, per_row=0.05)
    assert tried[-20:] == [5] * 20
    assert speculation.counts.drafted == sum(tried)
    assert speculation.counts.acceptance > 0.95


def test_drafts_that_are_never_right_are_soon_left_out():
    speculation = Speculation(limit=5)
    tried = run(speculation, noisy(), 600, per_row=0.2)
    assert sum(tried[:50]) > 0
    assert sum(length > 1 for length in tried[100:]) < 50


def mostly_repeated():
    rng = random.Random(3)
    return [rng.randrange(1000, 2000) if rng.random() < 0.15 else token for token in REPEATED]


def test_drafts_that_are_often_right_are_left_out_where_rows_are_dear():
    tried = run(Speculation(limit=5), mostly_repeated(), 600, per_row=50.0)
    assert sum(tried[:30]) > 0
    assert sum(tried[100:]) < 0.02 * 5 * 500
    assert sum(run(Speculation(limit=5), mostly_repeated(), 600, per_row=0.05)[100:]) > 500


def test_drafts_come_back_when_rows_become_cheap():
    speculation = Speculation(limit=5)
    assert sum(run(speculation, mostly_repeated(), 300, per_row=50.0)[200:]) < 25
    assert sum(run(speculation, REPEATED, 6000, per_row=0.01)[-100:]) > 400


def test_a_sequence_learns_from_the_others_and_then_from_itself():
    speculation = Speculation(limit=3)
    run(speculation, noisy(), 300, per_row=0.01)
    fresh = speculation.source([])
    assert fresh.chance < 0.5
    tokens = list(REPEATED[:40])
    source = speculation.source(tokens)
    for token in REPEATED[40:90]:
        source.propose(3)
        tokens.append(token)
    assert source.chance > 0.8


class Letters:
    """A constraint that allows ids below 10."""

    active = True

    def __init__(self):
        self.taken = 0

    def advance(self, token_id):
        self.taken += token_id < 10
        return token_id < 10

    def rollback(self, count):
        self.taken -= count


def test_drafts_end_where_the_form_or_the_output_does():
    constraint = Letters()
    state = SamplingState(
        SamplingParams(max_tokens=6), seed=0, vocab_size=100, output=[1, 2], constraint=constraint
    )
    assert state.possible([3, 4, 50, 5]) == [3, 4]
    assert state.possible([3, 4, 5, 6, 7]) == [3, 4, 5]
    assert constraint.taken == 2
    free = SamplingState(SamplingParams(max_tokens=None), seed=0, vocab_size=100)
    assert free.possible([50] * 9) == [50] * 9

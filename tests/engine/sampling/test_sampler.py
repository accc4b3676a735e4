"""A whole batch: the order of what happens to logits, rows that stay apart, drafts that change nothing."""

import math

import pytest
import torch

from step3.engine.sampling.params import SamplingParams
from step3.engine.sampling.sampler import NO_TOKEN, SamplingBatch, sample
from step3.engine.sampling.state import SamplingState

VOCAB = 40
EOS = 39


def state(*, seed=0, choice=0, prompt=(), output=(), bad_words=(), constraint=None, **params):
    return SamplingState(
        SamplingParams(**params),
        seed=seed,
        choice=choice,
        prompt=prompt,
        output=output,
        vocab_size=VOCAB,
        eos_token_ids=[EOS],
        bad_words=bad_words,
        constraint=constraint,
    )


def greedy(**options):
    return state(temperature=0, **options)


def best(logits, one):
    """The greedy token for a row of logits, given as {id: logit}; all others are far below."""
    row = torch.full((1, VOCAB), -50.0)
    for token, logit in logits.items():
        row[0, token] = logit
    return sample(row, SamplingBatch([one])).token_ids[0][0]


def test_greedy_takes_the_likeliest_and_of_equal_ones_the_lower_id():
    assert best({3: 1.0, 7: 2.0, 9: 2.0}, greedy()) == 7


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"presence_penalty": 0.4}, 6),
        ({"presence_penalty": 0.6}, 5),
        ({"frequency_penalty": 0.2}, 6),
        ({"frequency_penalty": 0.3}, 5),
        ({"repetition_penalty": 1.2}, 6),
        ({"repetition_penalty": 1.4}, 5),
    ],
)
def test_penalties_weigh_on_tokens_of_the_output(options, expected):
    assert best({5: 1.5, 6: 2.0}, greedy(output=[6, 6], **options)) == expected


def test_only_repetition_looks_at_the_prompt():
    assert best({5: 1.5, 6: 2.0}, greedy(prompt=[6], presence_penalty=2, frequency_penalty=2)) == 6
    assert best({5: 1.5, 6: 2.0}, greedy(prompt=[6], repetition_penalty=1.5)) == 5


def test_repetition_makes_negative_logits_lower():
    assert best({5: -1.5, 6: -1.0}, greedy(prompt=[6], repetition_penalty=2)) == 5


def test_repetition_comes_before_frequency_and_presence():
    # 3 / 2 - 0.5 - 0.5 = 0.5, not (3 - 1) / 2 = 1.
    one = greedy(output=[6], repetition_penalty=2, frequency_penalty=0.5, presence_penalty=0.5)
    assert best({5: 0.75, 6: 3.0}, one) == 5


def test_bias_comes_before_penalties():
    # (1 + 2) / 2 = 1.5, not 1 / 2 + 2 = 2.5.
    assert best({5: 2.0, 6: 1.0}, greedy(output=[6], repetition_penalty=2, logit_bias={6: 2})) == 5


def test_bias_is_added():
    assert best({5: 1.0, 6: 2.0}, greedy(logit_bias={5: 1.5})) == 5


def test_only_allowed_tokens_are_taken():
    assert best({5: 3.0, 6: 2.0, 7: 1.0}, greedy(allowed_token_ids=[7, 6])) == 6


def test_a_bias_does_not_bring_back_what_is_not_allowed():
    assert best({5: 3.0, 6: 2.0}, greedy(allowed_token_ids=[6], logit_bias={5: 100})) == 6


def test_the_end_of_a_bad_word_is_ruled_out_behind_its_beginning():
    words = [(3, 4, 5), (8,)]
    assert best({5: 3.0, 6: 2.0}, greedy(output=[3, 4], bad_words=words)) == 6
    assert best({5: 3.0, 6: 2.0}, greedy(output=[4, 4], bad_words=words)) == 5
    assert best({8: 3.0, 6: 2.0}, greedy(bad_words=words)) == 6


def test_bad_words_are_not_looked_for_in_the_prompt():
    assert best({5: 3.0, 6: 2.0}, greedy(prompt=[3, 4], bad_words=[(3, 4, 5)])) == 5


def test_no_end_before_min_tokens():
    options = {"min_tokens": 2, "stop_token_ids": [7]}
    assert best({EOS: 3.0, 7: 2.5, 6: 2.0}, greedy(output=[1], **options)) == 6
    assert best({EOS: 3.0, 7: 2.5, 6: 2.0}, greedy(output=[1, 1], **options)) == EOS


def test_tokens_beyond_the_vocabulary_are_passed_over():
    one = greedy(bad_words=[(VOCAB + 5,)], min_tokens=3, prompt=[VOCAB + 1], repetition_penalty=1.5)
    one.stop_ids = SamplingState(
        SamplingParams(), seed=0, vocab_size=VOCAB, eos_token_ids=[EOS, VOCAB + 9]
    ).stop_ids
    assert best({6: 2.0}, one) == 6


def test_a_seed_and_a_choice_make_a_sequence_of_their_own():
    logits = torch.zeros(40, VOCAB)

    def tokens(**options):
        return [
            sample(row[None].clone(), SamplingBatch([state(output=[1] * n, **options)])).token_ids[0][0]
            for n, row in enumerate(logits)
        ]

    assert tokens(seed=5) == tokens(seed=5)
    assert tokens(seed=5) != tokens(seed=6)
    assert tokens(seed=5) != tokens(seed=5, choice=1)


def everything():
    """States that use every parameter, with logits that make them matter."""
    torch.manual_seed(11)
    options = [
        {},
        {"temperature": 0},
        {"temperature": 0.7, "top_p": 0.8},
        {"top_k": 5, "logprobs": 2},
        {"min_p": 0.2, "seed": 9},
        {"repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": 0.3},
        {"temperature": 0, "repetition_penalty": 1.4, "logprobs": 0},
        {"logit_bias": {3: 4.0}, "bad_words": [(3,), (7, 8), (0, 21)]},
        {"allowed_token_ids": [1, 2, 3, 30]},
        {"min_tokens": 9, "temperature": 0},
        {"temperature": 1.8, "top_k": 30, "top_p": 0.95, "min_p": 0.01},
    ]
    states = [
        state(
            choice=n % 2,
            prompt=[n, 2 * n, 3],
            output=[(n * k) % VOCAB for k in range(n)],
            **{"seed": n, **one},
        )
        for n, one in enumerate(options)
    ]
    return states, torch.randn(len(states), VOCAB) * 2


def test_a_row_does_not_depend_on_the_rows_beside_it():
    states, logits = everything()
    together = sample(logits.clone(), SamplingBatch(states))
    order = torch.randperm(len(states)).tolist()
    shuffled = sample(logits[order].clone(), SamplingBatch([states[i] for i in order]))
    assert shuffled.token_ids == [together.token_ids[i] for i in order]
    assert shuffled.logprobs == [together.logprobs[i] for i in order]
    for i, one in enumerate(states):
        alone = sample(logits[i : i + 1].clone(), SamplingBatch([one]))
        assert alone.token_ids == [together.token_ids[i]]
        assert alone.logprobs == [together.logprobs[i]]


def test_a_batch_is_used_for_many_steps():
    states, logits = everything()
    again, _ = everything()
    batch = SamplingBatch(states)
    for _ in range(12):
        one = sample(logits.clone(), batch).token_ids
        fresh = sample(logits.clone(), SamplingBatch(again)).token_ids
        assert one == fresh
        for mine, other, tokens in zip(states, again, one, strict=True):
            mine.append(tokens[0])
            other.append(tokens[0])


def scores(tokens):
    """Logits that are a function of the tokens before, as a model's are."""
    torch.manual_seed(sum((place + 1) * token for place, token in enumerate(tokens)) % 100_003)
    return torch.randn(VOCAB) * 1.5


def continued(one, start, steps, drafting=None):
    """Tokens and logprobs that a state goes on with; `drafting` proposes tokens behind an output."""
    tokens, told, accepted = list(start), [], 0
    while len(tokens) < len(start) + steps:
        drafts = drafting(tokens) if drafting else []
        logits = torch.stack([scores(tokens + drafts[:n]) for n in range(len(drafts) + 1)])
        sampled = sample(logits, SamplingBatch([one]), [drafts] if drafting else None)
        accepted += len(sampled.token_ids[0]) - 1
        for token in sampled.token_ids[0]:
            one.append(token)
        tokens += sampled.token_ids[0]
        told += sampled.logprobs[0] or []
    return tokens[: len(start) + steps], told[:steps], accepted


@pytest.mark.parametrize("case", range(11))
def test_drafts_change_no_token_and_no_logprob(case):
    truth, told, _ = continued(everything()[0][case], [1], 25)

    def partly_right(tokens):
        ahead = truth[len(tokens) : len(tokens) + 4]
        return [
            token if place < len(tokens) % 4 else (token + 1) % VOCAB for place, token in enumerate(ahead)
        ]

    drafted, told_too, accepted = continued(everything()[0][case], [1], 25, partly_right)
    assert drafted == truth
    assert told_too == told
    assert accepted > 0


def test_drafts_of_one_sequence_do_not_touch_the_others():
    states, logits = everything()
    plain = sample(logits.clone(), SamplingBatch(states)).token_ids
    drafts = [[] for _ in states]
    drafts[0], drafts[5] = [plain[0][0], 3], [(plain[5][0] + 1) % VOCAB]
    wide = torch.cat([logits[:1], torch.randn(2, VOCAB), logits[1:6], torch.randn(1, VOCAB), logits[6:]])
    sampled = sample(wide, SamplingBatch(states), drafts).token_ids
    assert sampled[0][0] == plain[0][0]
    assert len(sampled[0]) in (2, 3)
    assert sampled[1:] == plain[1:]


def test_log_probabilities_are_told_before_parameters_change_anything():
    logits = torch.randn(1, VOCAB)
    told = torch.log_softmax(logits, dim=-1)[0]
    one = greedy(logprobs=1, allowed_token_ids=[4], logit_bias={4: 3.0})
    (entry,) = sample(logits, SamplingBatch([one])).logprobs[0]
    assert entry.token_id == 4
    assert entry.logprob == pytest.approx(float(told[4]))
    assert entry.top_ids == [int(told.argmax())]


class Listed:
    """A constraint that allows given sets of tokens, position by position, then only the end."""

    failure = None

    def __init__(self, *allowed, free=0):
        self.allowed, self.free, self.place = allowed, free, 0

    @property
    def active(self):
        return self.place >= self.free

    def now(self):
        inside = self.place - self.free
        return self.allowed[inside] if inside < len(self.allowed) else {EOS}

    def fill(self, bitmask, row):
        bitmask[row] = 0
        for token in self.now():
            bitmask[row, token // 32] |= torch.tensor(1 << (token % 32)).to(torch.int32)

    def advance(self, token_id):
        if self.active and token_id not in self.now():
            return False
        self.place += 1
        return True

    def rollback(self, count):
        self.place -= count


def test_a_constraint_is_kept_to_and_moved_on_by_what_is_appended():
    one = greedy(constraint=Listed({3, 35}, {31, 32}))
    assert best({3: 1.0, 35: 2.0, 7: 3.0}, one) == 35
    one.append(35)
    assert best({31: 1.0, 7: 3.0}, one) == 31
    one.append(31)
    assert best({7: 3.0}, one) == EOS


def test_an_output_that_is_taken_up_again_is_constrained_where_it_stands():
    assert best({31: 1.0, 7: 3.0}, greedy(output=[3], constraint=Listed({3}, {31}))) == 31


def test_log_probabilities_are_those_of_what_a_constraint_allows():
    logits = torch.zeros(1, VOCAB)
    (entry,) = sample(logits, SamplingBatch([greedy(logprobs=5, constraint=Listed({3, 5}))])).logprobs[0]
    assert entry.logprob == pytest.approx(math.log(0.5))
    assert entry.top_ids == [3, 5]


@pytest.mark.parametrize("free", [0, 1, 3])
def test_drafts_and_a_constraint_give_the_tokens_without_drafts(free):
    def fresh():
        return state(
            seed=4, constraint=Listed({3, 5, 9}, {1, 2, 4}, {8, 9}, {3, 7}, free=free), temperature=1.5
        )

    truth, _, _ = continued(fresh(), [], free + 4)
    for wrong in range(5):

        def drafting(tokens, wrong=wrong):
            ahead = truth[len(tokens) : len(tokens) + 3]
            return [(token + 11) % VOCAB if place == wrong else token for place, token in enumerate(ahead)]

        assert continued(fresh(), [], free + 4, drafting)[0] == truth


def test_min_tokens_gives_way_to_a_constraint_that_is_complete():
    assert best({7: 3.0}, greedy(min_tokens=5, constraint=Listed())) == EOS
    assert best({7: 3.0, 3: 1.0}, greedy(min_tokens=5, constraint=Listed({3, EOS}))) == 3


@pytest.mark.parametrize("temperature", [0, 1])
def test_where_nothing_is_allowed_there_is_no_token_and_other_rows_are_good(temperature):
    states = [
        state(temperature=temperature, allowed_token_ids=[3], bad_words=[(3,)], logprobs=1),
        state(temperature=temperature),
    ]
    logits = torch.full((2, VOCAB), -100.0)
    logits[1, 6] = 100.0
    assert sample(logits, SamplingBatch(states)).token_ids == [[NO_TOKEN], [6]]


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf])
@pytest.mark.parametrize(
    "options",
    [{"temperature": 0}, {}, {"top_p": 0.5}, {"top_k": 3, "top_p": 0.5, "min_p": 0.1}, {"logprobs": 2}],
)
def test_logits_that_are_no_numbers_give_no_token(options, value):
    logits = torch.full((3, VOCAB), -100.0)
    logits[0, 5] = value
    logits[1, 6] = 100.0
    logits[2] = -math.inf
    states = [state(**options) for _ in range(3)]
    assert sample(logits, SamplingBatch(states)).token_ids == [[NO_TOKEN], [6], [NO_TOKEN]]


def test_an_empty_batch_gives_nothing():
    assert sample(torch.empty(0, VOCAB), SamplingBatch([])).token_ids == []

"""Drafts: what followed the longest earlier occurrence of the last tokens."""

import random

import pytest

from step3.engine.sampling import prompt_lookup
from step3.engine.sampling.prompt_lookup import PromptLookup


def draft(tokens, limit=4, **options):
    return PromptLookup(tokens, **options).draft(limit)


def restated(tokens, limit, min_match, max_match):
    """The longest match of any earlier place, of equally long ones the latest."""
    end, best, best_place = len(tokens), min_match - 1, 0
    for place in range(end - 1, 0, -1):
        length = 0
        while length < min(place, max_match) and tokens[place - 1 - length] == tokens[end - 1 - length]:
            length += 1
        if length > best:
            best, best_place = length, place
    if not best_place:
        return []
    drafted = []
    while len(drafted) < limit:
        drafted.append((tokens + drafted)[best_place + len(drafted)])
    return drafted


def test_what_followed_before_is_drafted():
    assert draft([1, 2, 3, 7, 8, 9, 1, 2, 3]) == [7, 8, 9, 1]


def test_new_tokens_have_no_draft():
    assert draft([1, 2, 3, 4, 5, 6]) == []
    assert draft([]) == []
    assert draft([1, 1]) == []


def test_the_longer_match_is_taken_before_the_later_one():
    assert draft([5, 1, 2, 3, 40, 9, 1, 2, 3, 50, 5, 1, 2, 3], limit=1) == [40]


def test_of_equally_long_matches_the_latest_is_taken():
    assert draft([1, 2, 3, 40, 9, 1, 2, 3, 50, 8, 1, 2, 3], limit=1) == [50]


def test_a_text_that_repeats_itself_is_drafted_on():
    assert draft([7, 1, 2, 3, 1, 2, 3], limit=7) == [1, 2, 3, 1, 2, 3, 1]
    assert draft([5, 5, 5, 5], limit=3) == [5, 5, 5]


def test_tokens_that_come_later_are_found():
    tokens = [1, 2, 3]
    lookup = PromptLookup(tokens)
    assert lookup.draft(2) == []
    tokens += [8, 1, 2, 3]
    assert lookup.draft(2) == [8, 1]


@pytest.mark.parametrize("seed", range(60))
def test_every_text_equals_the_restatement(seed, monkeypatch):
    monkeypatch.setattr(prompt_lookup, "_CHAIN", 10_000)
    rng = random.Random(seed)
    min_match, max_match, letters = rng.randint(1, 4), rng.randint(4, 9), rng.randint(1, 4)
    tokens = []
    lookup = PromptLookup(tokens, min_match, max_match)
    for _ in range(120):
        tokens += [rng.randrange(letters) for _ in range(rng.randint(1, 3))]
        assert lookup.draft(5) == restated(tokens, 5, min_match, max_match)


def test_a_look_up_looks_at_few_places_whatever_the_text():
    class Counted(list):
        reads = 0

        def __getitem__(self, key):
            Counted.reads += 1
            return super().__getitem__(key)

    tokens = Counted([0, 0, 0, 1] * 5000)
    lookup = PromptLookup(tokens)
    lookup.draft(4)
    Counted.reads = 0
    tokens.append(0)
    lookup.draft(4)
    assert Counted.reads < 200

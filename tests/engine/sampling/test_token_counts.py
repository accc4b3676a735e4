"""Counts of the tokens seen, kept one by one."""

import random
from collections import Counter

from step3.engine.sampling.token_counts import TokenCounts


def as_dict(seen):
    ids, counts = seen
    assert len(set(ids.tolist())) == len(ids)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def test_prompt_tokens_are_seen_but_not_counted():
    counts = TokenCounts(prompt=[3, 3, 5], output=[5, 9])
    assert as_dict(counts.seen()) == {3: 0, 5: 1, 9: 1}


def test_more_tokens_count_without_being_kept():
    counts = TokenCounts(prompt=[3], output=[5])
    assert as_dict(counts.seen([5, 7, 7, 3])) == {3: 1, 5: 2, 7: 2}
    assert as_dict(counts.seen()) == {3: 0, 5: 1}


def test_counts_grow_with_the_output():
    rng = random.Random(0)
    output = [rng.randrange(500) for _ in range(3000)]
    counts = TokenCounts()
    for token in output:
        counts.add(token)
    assert as_dict(counts.seen()) == Counter(output)

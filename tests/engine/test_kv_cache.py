"""Blocks for sequences: enough or none, shared or own, and all back in the end."""

import pytest
from engine_requests import make_cache, make_request, make_sequence

from step3 import SamplingParams
from step3.engine.request import Status


def test_admits_with_blocks_for_every_token() -> None:
    cache, sequence = make_cache(10), make_sequence(range(9))
    assert cache.admit(sequence)
    assert len(sequence.blocks) == 3
    cache.assert_consistent([sequence])


def test_takes_nothing_where_blocks_are_lacking() -> None:
    cache, sequence = make_cache(2), make_sequence(range(9))
    assert not cache.fits(sequence)
    assert not cache.admit(sequence)
    assert sequence.blocks == []
    assert cache.num_free_blocks == 2


def test_grows_by_a_block_only_when_the_last_is_full() -> None:
    cache, sequence = make_cache(3), make_sequence(range(7))
    assert cache.admit(sequence)
    assert cache.grow(sequence, 8)
    assert len(sequence.blocks) == 2
    assert cache.grow(sequence, 9)
    assert len(sequence.blocks) == 3
    assert not cache.grow(sequence, 13)
    assert len(sequence.blocks) == 3


def test_shared_blocks_that_nobody_holds_are_not_counted_twice() -> None:
    cache, first = make_cache(3), make_sequence(range(9))
    assert cache.admit(first)
    first.num_computed = 9
    cache.commit(first)
    cache.release(first)
    # Two blocks are shared and free, one more is needed and free: three in all.
    assert cache.admit(make_sequence(range(9), 1))
    # The same two, and two more: one too few.
    other = make_sequence(range(13), 2)
    assert not cache.fits(other)


def test_usage_counts_held_blocks_only() -> None:
    cache, sequence = make_cache(4), make_sequence(range(8))
    assert cache.admit(sequence)
    assert cache.usage == 0.5
    sequence.num_computed = 8
    cache.commit(sequence)
    cache.release(sequence)
    assert cache.usage == 0


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_answers_to_one_prompt_share_its_blocks(prefix_caching: bool) -> None:
    cache = make_cache(10, prefix_caching)
    first, second = make_request(range(9), params=SamplingParams(n=2)).sequences
    assert cache.admit(first)
    first.status, first.num_computed = Status.RUNNING, 9
    cache.commit(first)
    assert cache.admit(second)
    assert second.blocks[:2] == first.blocks[:2]
    assert second.blocks[2] != first.blocks[2]
    assert second.num_computed == 8
    cache.assert_consistent([first, second])


def test_without_prefix_caching_nothing_outlives_its_request() -> None:
    cache, sequence = make_cache(10, prefix_caching=False), make_sequence(range(9))
    assert cache.admit(sequence)
    sequence.num_computed = 9
    cache.commit(sequence)
    cache.release(sequence)
    again = make_sequence(range(9), 1)
    assert cache.admit(again)
    assert again.num_computed == 0


def test_a_prompt_whose_logprobs_are_asked_for_is_computed_anew() -> None:
    cache, sequence = make_cache(10), make_sequence(range(9))
    assert cache.admit(sequence)
    sequence.num_computed = 9
    cache.commit(sequence)
    asking = make_sequence(range(9), 1, params=SamplingParams(prompt_logprobs=1))
    assert cache.admit(asking)
    assert asking.num_computed == 0


def test_notices_a_block_that_was_lost() -> None:
    cache, sequence = make_cache(4), make_sequence(range(8))
    assert cache.admit(sequence)
    sequence.blocks.pop()
    with pytest.raises(AssertionError):
        cache.assert_consistent([sequence])

"""Which beginnings count as the same."""

import pytest
from engine_requests import BLOCK, make_cache, make_picture, make_sequence

from step3.engine.kv_cache import KVCache
from step3.engine.request import Sequence

PROMPT = range(10)


def remember(cache: KVCache, sequence: Sequence) -> None:
    """The sequence was computed and has ended."""
    assert cache.admit(sequence)
    sequence.num_computed = len(sequence.tokens)
    cache.commit(sequence)
    cache.release(sequence)


def found(cache: KVCache, sequence: Sequence) -> int:
    """Tokens that an admission finds."""
    assert cache.admit(sequence)
    count = sequence.num_computed
    cache.release(sequence)
    return count


@pytest.fixture
def cache() -> KVCache:
    cache = make_cache(20)
    remember(cache, make_sequence(PROMPT))
    return cache


def test_finds_the_whole_blocks_of_a_beginning(cache: KVCache) -> None:
    assert found(cache, make_sequence([*PROMPT, 1, 2, 3])) == 8


def test_computes_at_least_the_last_token_of_a_known_prompt(cache: KVCache) -> None:
    assert found(cache, make_sequence(range(8))) == 4


def test_ends_at_the_first_token_that_differs(cache: KVCache) -> None:
    assert found(cache, make_sequence([0, 1, 2, 3, 4, 5, 99, 7, 8, 9])) == 4


def test_the_same_block_behind_another_beginning_is_another_block(cache: KVCache) -> None:
    assert found(cache, make_sequence([99, *range(1, 10)])) == 0


def test_salts_keep_tenants_apart(cache: KVCache) -> None:
    assert found(cache, make_sequence(PROMPT, salt=b"other")) == 0


def test_other_pictures_in_the_same_places_are_another_beginning() -> None:
    cache = make_cache(20)
    tokens = [1, 2, *[7] * 8, 3, 4, 5]
    remember(cache, make_sequence(tokens, pictures=(make_picture(b"a" * 32, 2, 10),)))
    assert found(cache, make_sequence(tokens, pictures=(make_picture(b"a" * 32, 2, 10),))) == 12
    assert found(cache, make_sequence(tokens, pictures=(make_picture(b"b" * 32, 2, 10),))) == 0
    assert found(cache, make_sequence(tokens)) == 0


def test_a_picture_does_not_touch_the_blocks_before_it() -> None:
    cache = make_cache(20)
    tokens = [1, 2, 3, 4, *[7] * 8, 5]
    remember(cache, make_sequence(tokens, pictures=(make_picture(b"a" * 32, 4, 12),)))
    assert found(cache, make_sequence(tokens, pictures=(make_picture(b"b" * 32, 4, 12),))) == 4


def test_another_part_of_the_same_picture_is_another_block() -> None:
    cache = make_cache(20)
    tokens = [7] * 9
    remember(cache, make_sequence(tokens, pictures=(make_picture(b"a" * 32, 0, 9),)))
    assert found(cache, make_sequence(tokens, pictures=(make_picture(b"a" * 32, 1, 9),))) == 0


def test_answers_are_beginnings_too(cache: KVCache) -> None:
    remember(cache, make_sequence(PROMPT, output=[50, 51, 52]))
    assert found(cache, make_sequence([*PROMPT, 50, 51, 60])) == 12


def test_what_is_not_computed_yet_cannot_be_found() -> None:
    cache = make_cache(20)
    sequence = make_sequence(PROMPT)
    assert cache.admit(sequence)
    sequence.num_computed = 5
    cache.commit(sequence)
    assert found(cache, make_sequence(PROMPT, 1)) == BLOCK


def test_blocks_that_are_needed_for_others_are_forgotten_tail_first() -> None:
    cache = make_cache(5)
    remember(cache, make_sequence(range(16)))
    other = make_sequence(range(100, 108), 1)
    remember(cache, other)
    assert found(cache, make_sequence(range(16), 2)) == 12
    assert cache.num_free_blocks == 5


def test_counts_what_was_looked_for_and_found(cache: KVCache) -> None:
    assert cache.prefixes is not None
    before = cache.prefixes.queried
    found(cache, make_sequence([*PROMPT, 1]))
    assert (cache.prefixes.queried - before, cache.prefixes.found) == (10, 8)


def test_names_depend_on_the_key() -> None:
    from step3.engine.prefix_cache import PrefixCache

    one, other = make_sequence(PROMPT), make_sequence(PROMPT)
    for sequence, key in ((one, b"a"), (other, b"b")):
        PrefixCache(BLOCK, key).find(sequence, 8)
    assert one.block_names
    assert not set(one.block_names) & set(other.block_names)

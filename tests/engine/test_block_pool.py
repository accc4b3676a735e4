"""Who holds which block, and which block is taken next."""

import pytest

from step3.engine.block_pool import BlockPool


@pytest.fixture
def reused() -> list[int]:
    return []


@pytest.fixture
def pool(reused: list[int]) -> BlockPool:
    return BlockPool(4, reused.append)


def keep_all(block: int) -> bool:
    return True


def keep_none(block: int) -> bool:
    return False


def test_takes_each_block_once(pool: BlockPool) -> None:
    assert sorted(pool.take(4)) == [0, 1, 2, 3]
    assert pool.num_free == 0


def test_a_shared_block_is_free_only_when_all_have_released_it(pool: BlockPool) -> None:
    [block] = pool.take(1)
    pool.share(block)
    pool.release([block], keep_none)
    assert pool.num_free == 3
    pool.release([block], keep_none)
    assert pool.num_free == 4


def test_content_worth_keeping_is_taken_last_and_the_oldest_of_it_first(
    pool: BlockPool, reused: list[int]
) -> None:
    first, second, third = pool.take(3)
    pool.release([second], keep_all)
    pool.release([first], keep_all)
    pool.release([third], keep_none)
    assert set(pool.take(2)) == {third, 3}
    assert reused == []
    assert pool.take(2) == [second, first]
    assert reused == [second, first]


def test_a_free_block_that_is_shared_again_is_not_told_as_reused(pool: BlockPool, reused: list[int]) -> None:
    [block] = pool.take(1)
    pool.release([block], keep_all)
    pool.share(block)
    pool.take(3)
    assert reused == []
    pool.assert_consistent({block: 1, **dict.fromkeys({0, 1, 2, 3} - {block}, 1)})


def test_notices_a_block_that_nobody_should_hold(pool: BlockPool) -> None:
    [block] = pool.take(1)
    with pytest.raises(AssertionError, match=f"block {block} has 1 holders, expected 0"):
        pool.assert_consistent({})

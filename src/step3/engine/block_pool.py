"""Blocks of the KV cache: who holds them, and which one is free next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable


class BlockPool:
    """Counts the holders of every block.

    A free block keeps its content until it is taken again. Blocks whose content is worth keeping are taken
    last, the least recently used of them first.
    """

    def __init__(self, num_blocks: int, on_reuse: Callable[[int], None]) -> None:
        """`on_reuse` is told of a block that was worth keeping, when it is taken for new content."""
        self.num_blocks = num_blocks
        self._on_reuse = on_reuse
        self._holders = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._kept: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    def holders(self, block: int) -> int:
        return self._holders[block]

    def take(self, count: int) -> list[int]:
        """`count` free blocks, each with one holder; the caller has looked that there are as many."""
        taken = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            if block in self._kept:
                self._kept.discard(block)
                self._on_reuse(block)
            self._holders[block] = 1
            taken.append(block)
        return taken

    def share(self, block: int) -> None:
        """One holder more, of a block that is held or free."""
        if self._holders[block] == 0:
            del self._free[block]
            self._kept.discard(block)
        self._holders[block] += 1

    def release(self, blocks: Iterable[int], keep: Callable[[int], bool]) -> None:
        """One holder less for each block; those that nobody holds become free, in the order given.

        Args:
            keep: whether a block's content is worth keeping.
        """
        for block in blocks:
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            self._free[block] = None
            if keep(block):
                self._kept.add(block)
            else:
                self._free.move_to_end(block, last=False)

    def assert_consistent(self, held: dict[int, int]) -> None:
        """Raises AssertionError unless exactly the blocks of `held` are held, by as many as it says."""
        for block in range(self.num_blocks):
            expected = held.get(block, 0)
            assert self._holders[block] == expected, (
                f"block {block} has {self._holders[block]} holders, expected {expected}"
            )
            assert (block in self._free) == (expected == 0), f"block {block} is both free and held, or lost"
        assert self._kept <= self._free.keys(), "a block is kept though it is not free"

"""The KV cache as the scheduler sees it: blocks for sequences, shared where they begin alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from step3.engine.block_pool import BlockPool
from step3.engine.prefix_cache import PrefixCache
from step3.engine.request import Sequence, Status


class KVCache:
    """Gives blocks to sequences and takes them back; every block has exactly the holders that it should.

    Attributes:
        prefixes: the prefix cache, or None where it is turned off.
    """

    def __init__(self, num_blocks: int, block_size: int, prefixes: PrefixCache | None) -> None:
        self.block_size, self.prefixes = block_size, prefixes
        self._pool = BlockPool(num_blocks, prefixes.forget if prefixes is not None else lambda block: None)

    @property
    def num_blocks(self) -> int:
        return self._pool.num_blocks

    @property
    def num_free_blocks(self) -> int:
        return self._pool.num_free

    @property
    def usage(self) -> float:
        """Part of the blocks that sequences hold, 0 to 1; what only the prefix cache knows is free."""
        return 1 - self._pool.num_free / self._pool.num_blocks

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def fits(self, sequence: Sequence) -> bool:
        """Whether `admit` would find enough blocks."""
        return self._missing(sequence, self._shared_blocks(sequence)) <= 0

    def admit(self, sequence: Sequence) -> bool:
        """Blocks for all tokens that the sequence has, or none if there are too few.

        Tokens that the cache holds already are marked as computed, all but the last: its logits are needed.
        """
        shared = self._shared_blocks(sequence)
        if self._missing(sequence, shared) > 0:
            return False
        for block in shared:
            self._pool.share(block)
        sequence.blocks = shared + self._pool.take(self.blocks_for(len(sequence.tokens)) - len(shared))
        sequence.num_computed = len(shared) * self.block_size
        sequence.num_named = len(shared)
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed
        if self.prefixes is not None:
            self.prefixes.count(len(sequence.tokens) - 1, sequence.num_computed)
        return True

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        """Blocks for the sequence's first `tokens` tokens; False, and nothing taken, if there are too few."""
        needed = self.blocks_for(tokens) - len(sequence.blocks)
        if needed > self._pool.num_free:
            return False
        if needed > 0:
            sequence.blocks += self._pool.take(needed)
        return True

    def commit(self, sequence: Sequence) -> None:
        """The sequence's computed tokens are in its blocks: others may use them."""
        has_full = sequence.num_computed - sequence.num_named * self.block_size >= self.block_size
        if has_full and self.prefixes is not None:
            self.prefixes.insert(sequence, sequence.num_computed)

    def release(self, sequence: Sequence) -> None:
        """Takes all blocks back; the last are reused first, as they are the least likely to be shared."""
        keep = self.prefixes.holds if self.prefixes is not None else (lambda block: False)
        self._pool.release(reversed(sequence.blocks), keep)
        sequence.blocks = []
        sequence.num_computed = sequence.num_named = 0

    def assert_consistent(self, sequences: Iterable[Sequence]) -> None:
        """Raises AssertionError unless `sequences` hold all blocks that are held, as many as they need."""
        held: Counter[int] = Counter()
        for sequence in sequences:
            assert len(set(sequence.blocks)) == len(sequence.blocks), "a sequence holds a block twice"
            assert len(sequence.blocks) >= self.blocks_for(sequence.num_computed)
            held.update(sequence.blocks)
        self._pool.assert_consistent(held)
        if self.prefixes is not None:
            self.prefixes.assert_consistent()

    def _missing(self, sequence: Sequence, shared: list[int]) -> int:
        """Blocks that are lacking to admit a sequence which shares some."""
        needed = self.blocks_for(len(sequence.tokens)) - len(shared)
        # A shared block that nobody holds is counted among the free ones.
        idle = sum(self._pool.holders(block) == 0 for block in shared)
        return needed - (self._pool.num_free - idle)

    def _shared_blocks(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the sequence's beginning, its last token excluded."""
        request, known = sequence.request, len(sequence.tokens) - 1
        first = request.sequences[0]
        if sequence is first and request.params.prompt_logprobs is not None:
            # Each prompt token's logits are asked for, so each has to be computed.
            return []
        found = self.prefixes.find(sequence, known) if self.prefixes is not None else []
        if sequence is not first and first.status is Status.RUNNING:
            # Answers to the same prompt share it, with or without a prefix cache.
            computed = min(first.num_computed, len(request.prompt_token_ids), known)
            found = max(found, first.blocks[: computed // self.block_size], key=len)
        return found

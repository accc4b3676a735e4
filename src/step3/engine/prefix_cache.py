"""Which blocks hold which beginnings: prompts that begin alike share their keys and values.

A block is known by a keyed SHA-256 over its tokens, its pictures and the block before it, so that equal
names mean equal beginnings. The key is secret to the process and stands before the message; names never leave
it either, so that nobody can make two prompts whose names collide.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from itertools import islice

from step3.engine.request import Request, Sequence


class PrefixCache:
    """Finds the blocks that hold a sequence's first tokens.

    Attributes:
        queried, found: tokens that were looked for, and those that were found.
    """

    def __init__(self, block_size: int, key: bytes) -> None:
        self._block_size = block_size
        self._keyed = hashlib.sha256(key.ljust(64, b"\0"))
        self._block_of: dict[bytes, int] = {}
        self._name_of: dict[int, bytes] = {}
        self.queried = self.found = 0

    def holds(self, block: int) -> bool:
        """Whether the block's content can be found."""
        return block in self._name_of

    def find(self, sequence: Sequence, tokens: int) -> list[int]:
        """The blocks that hold the beginning of the sequence's first `tokens` tokens, whole blocks only."""
        blocks = []
        count = tokens // self._block_size
        self._name(sequence, count)
        for name in islice(sequence.block_names, count):
            block = self._block_of.get(name)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def count(self, queried: int, found: int) -> None:
        """Notes an admission for the hit rate."""
        self.queried += queried
        self.found += found

    def insert(self, sequence: Sequence, computed: int) -> None:
        """Makes the blocks of the sequence's first `computed` tokens findable; equal ones may be already."""
        full = computed // self._block_size
        if sequence.num_named >= full:
            return
        self._name(sequence, full)
        for i in range(sequence.num_named, full):
            name, block = sequence.block_names[i], sequence.blocks[i]
            if name not in self._block_of and block not in self._name_of:
                self._block_of[name] = block
                self._name_of[block] = name
        sequence.num_named = full

    def forget(self, block: int) -> None:
        """The block is about to hold something else."""
        name = self._name_of.pop(block, None)
        if name is not None:
            del self._block_of[name]

    def clear(self) -> None:
        self._block_of.clear()
        self._name_of.clear()

    def assert_consistent(self) -> None:
        """Raises AssertionError unless names and blocks belong to each other one to one."""
        assert len(self._block_of) == len(self._name_of)
        for name, block in self._block_of.items():
            assert self._name_of[block] == name

    def _name(self, sequence: Sequence, count: int) -> None:
        """Names the sequence's first `count` blocks, as far as they have no names yet."""
        names, request, size = sequence.block_names, sequence.request, self._block_size
        for start in range(len(names) * size, count * size, size):
            before = names[-1] if names else self._digest(b"salt", request.salt)
            tokens = array("q", sequence.tokens[start : start + size]).tobytes()
            names.append(self._digest(b"block", before, tokens, *_pictures(request, start, start + size)))

    def _digest(self, *parts: bytes) -> bytes:
        # All parts but the salt, the last of its message, have one length: none can pass for another.
        state = self._keyed.copy()
        state.update(b"".join(parts))
        return state.digest()


def _pictures(request: Request, start: int, end: int) -> Iterator[bytes]:
    """What the tokens from `start` to `end` do not say of pictures: which, and which part of each."""
    for picture in request.pictures:
        if picture.start < end and picture.end > start:
            yield picture.digest + (start - picture.start).to_bytes(8, "little", signed=True)

"""Which attention instance gets a request: one that has its beginning in the cache, and room.

The front sees every request and every token, so it knows what each instance holds without asking: the tokens
of unfinished requests, and, as hashes, the beginnings of the prompts that it was given.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

BLOCK = 32
"""Tokens of a block of a prompt."""

MAX_BLOCKS = 1 << 16
"""Blocks that are remembered for each instance, the latest."""


@dataclass
class Place:
    """What the router knows of an instance.

    Attributes:
        capacity: tokens that its KV cache holds.
        held: tokens of its unfinished requests.
    """

    capacity: int
    held: int = 0
    _seen: OrderedDict[bytes, None] = field(default_factory=OrderedDict)

    def matched(self, names: Sequence[bytes]) -> int:
        """How many of a prompt's first blocks it was given before."""
        for count, name in enumerate(names):
            if name not in self._seen:
                return count
        return len(names)

    def remember(self, names: Sequence[bytes]) -> None:
        for name in names:
            self._seen[name] = None
            self._seen.move_to_end(name)
        while len(self._seen) > MAX_BLOCKS:
            self._seen.popitem(last=False)


def block_names(tokens: Sequence[int], salt: bytes) -> list[bytes]:
    """Names of a prompt's full blocks; equal names mean equal beginnings.

    Args:
        salt: what else must be equal: a cache salt, digests of pictures.
    """
    names, before = [], hashlib.blake2b(salt, digest_size=16).digest()
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        block = array("q", tokens[start : start + BLOCK]).tobytes()
        before = hashlib.blake2b(before + block, digest_size=16).digest()
        names.append(before)
    return names


def choose(places: Mapping[int, Place], names: Sequence[bytes], tokens: int) -> int | None:
    """The instance that has the least to do with a request on top of what it has.

    An instance's cost is the tokens that it holds already and those that it would have to compute. One that
    has no room for the request comes after all that have.

    Args:
        places: by instance.
        names: of the prompt's blocks.
        tokens: of the prompt.
    """

    def cost(instance: int) -> tuple[bool, int, int]:
        place = places[instance]
        own = tokens - place.matched(names) * BLOCK
        return place.held + tokens > place.capacity, place.held + own, instance

    return min(places, key=cost, default=None)

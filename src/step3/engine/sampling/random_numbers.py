"""Random numbers that are a function of (seed, stream, position, index), never of history or of the batch.

Philox-4x32-10, a counter-based generator: J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw,
"Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, https://doi.org/10.1145/2063384.2063405, section 3.
The seed is its key; stream, position and index are its counter, so any number can be had without the others.
"""

import numpy as np
import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF
WORDS = 4
"""32-bit words that one counter gives."""

# Streams keep uses apart: the draws of an output's tokens are streams 0 to n - 1.
_SEED_STREAM = _WORD


def philox(key: Tensor, counter: Tensor) -> Tensor:
    """Philox-4x32-10 on 32-bit words kept in int64.

    The product of two words overflows int64, but only into the sign: its 64 bits are right.

    Args:
        key: `[2, ...]` int64 words from 0 to 2^32 - 1.
        counter: `[4, ...]` int64 words, to whose shape the key's broadcasts.

    Returns:
        `[4, ...]` int64 words.
    """
    dims = (1,) * (max(key.dim(), counter.dim()) - 1)
    multipliers = torch.tensor(_MULTIPLIERS, device=key.device).view(2, *dims)
    steps = torch.tensor(_KEY_STEPS, device=key.device).view(2, *dims)
    rounds = torch.arange(_ROUNDS, device=key.device).view(-1, 1, *dims)
    even, odd = counter[0::2], counter[1::2]
    for round_key in ((key + rounds * steps) & _WORD).unbind():
        product = (even * multipliers).flip(0)
        even = (product >> 32).bitwise_and_(_WORD).bitwise_xor_(odd) ^ round_key
        odd = product.bitwise_and_(_WORD)
    return torch.stack((even, odd), dim=1).flatten(0, 1)


def philox_numpy(key: np.ndarray, counter: np.ndarray) -> np.ndarray:
    """`philox` on uint64 arrays: on a CPU a quarter of its time, as the arrays of a step are small."""
    word, half = np.uint64(_WORD), np.uint64(32)
    dims = (1,) * (max(key.ndim, counter.ndim) - 1)
    multipliers = np.array(_MULTIPLIERS, np.uint64).reshape(2, *dims)
    steps = np.array(_KEY_STEPS, np.uint64).reshape(2, *dims)
    even, odd = counter[0::2], counter[1::2]
    for _ in range(_ROUNDS):
        product = (even * multipliers)[::-1]
        even = (product >> half) ^ odd ^ key
        odd = product & word
        key = (key + steps) & word
    return np.stack((even, odd), axis=1).reshape(4, *even.shape[1:])


def philox_ints(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """`philox` of one counter: without arrays, which take a hundred times as long for a single one."""
    first, second, third, fourth = counter
    for number in range(_ROUNDS):
        low, high = first * _MULTIPLIERS[0], third * _MULTIPLIERS[1]
        keys = [(word + number * step) & _WORD for word, step in zip(key, _KEY_STEPS, strict=True)]
        first, second = (high >> 32) ^ second ^ keys[0], high & _WORD
        third, fourth = (low >> 32) ^ fourth ^ keys[1], low & _WORD
    return first, second, third, fourth


def words(seeds: Tensor, streams: Tensor, positions: Tensor, count: int) -> Tensor:
    """The first `count` 32-bit words of each row's counter.

    Args:
        seeds: `[rows]` int64, any 64 bits.
        streams, positions: `[rows]` int64 from 0 to 2^32 - 1.

    Returns:
        `[rows, count]` int64 from 0 to 2^32 - 1; a word's value does not depend on `count`.
    """
    blocks = -(-count // WORDS)
    key = torch.stack((seeds & _WORD, (seeds >> 32) & _WORD))[:, :, None]
    index = torch.arange(blocks, device=seeds.device).expand(len(seeds), blocks)
    counter = torch.stack(
        (
            index,
            torch.zeros_like(index),
            positions[:, None].expand_as(index),
            streams[:, None].expand_as(index),
        )
    )
    if key.device.type == "cpu":
        found = philox_numpy(key.numpy().view(np.uint64), counter.numpy().view(np.uint64))
        drawn = torch.from_numpy(found.view(np.int64))
    else:
        drawn = philox(key, counter)
    return drawn.permute(1, 2, 0).reshape(len(seeds), blocks * WORDS)[:, :count]


def uniforms(seeds: Tensor, streams: Tensor, positions: Tensor, count: int) -> Tensor:
    """Uniform numbers in the open interval (0, 1), `[rows, count]` float64, in steps of 2^-32."""
    return (words(seeds, streams, positions, count).to(torch.float64) + 0.5) * 2.0**-32


def gumbels(seeds: Tensor, streams: Tensor, positions: Tensor, count: int) -> Tensor:
    """Standard Gumbel numbers -log(-log u), `[rows, count]` float64, from -3.13 to 22.9."""
    drawn = uniforms(seeds, streams, positions, count)
    if drawn.device.type == "cpu":
        # numpy's logarithm is vectorised for float64.
        return torch.from_numpy(-np.log(-np.log(drawn.numpy())))
    return -(-drawn.log()).log()


def request_seed(engine_seed: int, request_number: int) -> int:
    """A seed, from 0 to 2^63 - 1, for a request that brings none.

    Args:
        engine_seed: any 64 bits.
        request_number: counts the engine's requests, from 0 to 2^32 - 1, and from 0 again after that.
    """
    high, low, _, _ = philox_ints(
        (engine_seed & _WORD, (engine_seed >> 32) & _WORD), (0, 0, request_number & _WORD, _SEED_STREAM)
    )
    return ((high << 32) | low) & (2**63 - 1)


def as_int64(seed: int) -> int:
    """The signed number with the same 64 bits."""
    return (seed + 2**63) % 2**64 - 2**63

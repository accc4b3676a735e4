"""Top-k, top-p and min-p: which tokens a draw may take.

Logits come as distances from the best one: the likeliest token is at 0, what is ruled out is at `FAR`.
Sums that decide are sums of integers: they do not depend on their order, and a row's result not on the rows
beside it. The work is linear in the vocabulary, however flat the distribution.
"""

import torch
from torch import Tensor

FAR = 80.0
"""No draw reaches so far (see `random_numbers.gumbels`). exp(-FAR) is a normal float32, which exp of a CPU
computes twenty times faster than exp(-inf)."""

_WEIGHT_UNIT = 2.0**40
"""A weight is exp(-distance) in whole numbers of 2^-40: 2^22 of them add up within 2^62."""

_DIGITS = ((21, 2**10), (11, 2**10), (0, 2**11))
"""Shift and number of values of the digits that the 31 bits of a distance are read in."""


def apply_min_p(distances: Tensor, min_p: Tensor) -> None:
    """Rules out, in place, tokens less than `min_p` times as likely as the likeliest.

    Args:
        distances: `[rows, size]` float32, from 0 to `FAR`.
        min_p: `[rows]` float32.
    """
    distances.masked_fill_((-distances).exp() < min_p[:, None], FAR)


def apply_top_k(distances: Tensor, top_k: Tensor) -> None:
    """Rules out, in place, tokens behind the k likeliest; those as likely as the k-th stay.

    Args:
        distances: `[rows, size]` float32, from 0 to `FAR`.
        top_k: `[rows]` int64, from 1.
    """
    wanted = top_k.clamp(max=distances.shape[-1])
    nearest = distances.topk(int(wanted.max()), dim=-1, largest=False).values
    distances.masked_fill_(distances > nearest.gather(-1, wanted[:, None] - 1), FAR)


def apply_top_p(distances: Tensor, top_p: Tensor) -> None:
    """Rules out, in place, tokens behind the fewest whose share of the whole is at least p.

    The likeliest are taken first, and of equally likely ones those with the lower ids.

    Args:
        distances: `[rows, size]` float32, from 0 to `FAR`.
        top_p: `[rows]` float64, below 1.
    """
    # Floats that are not negative are in the order of their bits.
    bits = distances.view(torch.int32)
    weights = ((-distances).exp() * _WEIGHT_UNIT).to(torch.int64)
    wanted = (weights.sum(dim=-1).to(torch.float64) * top_p).ceil().to(torch.int64)
    last, before = _select(bits, weights, wanted)
    dropped = bits > last[:, None]
    last_ones = bits == last[:, None]
    if bool((last_ones.sum(dim=-1) > 1).any()):
        ahead = before[:, None] + (last_ones.cumsum(dim=-1) - 1) * weights
        dropped |= last_ones & (ahead >= wanted[:, None])
    distances.masked_fill_(dropped, FAR)


def _select(bits: Tensor, weights: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The value up to which weights, added up in the order of `bits`, reach what is wanted.

    A radix selection: the weights are added up by the leading digit, and only what shares the digit of the
    value looked for is looked at again.

    Args:
        bits: `[rows, size]` int32, not negative.
        weights: `[rows, size]` int64, not negative.
        wanted: `[rows]` int64 from 1 to the sum of the weights.

    Returns:
        Of each row that value, and the sum of the weights below it, `[rows]` int64.
    """
    shift, count = _DIGITS[0]
    leading = bits >> shift
    sums = weights.new_zeros(len(bits), count).scatter_add_(1, leading.to(torch.int64), weights)
    digit, before = _reach(sums, torch.zeros_like(wanted), wanted)
    value = digit << shift
    rows, columns = (leading == digit[:, None]).nonzero(as_tuple=True)
    rest, shares = bits[rows, columns].to(torch.int64), weights[rows, columns]
    for shift, count in _DIGITS[1:]:
        digits = (rest >> shift) & (count - 1)
        sums = weights.new_zeros(len(bits) * count).scatter_add_(0, rows * count + digits, shares)
        digit, before = _reach(sums.view(-1, count), before, wanted)
        value += digit << shift
        same = digits == digit[rows]
        rows, rest, shares = rows[same], rest[same], shares[same]
    return value, before


def _reach(sums: Tensor, before: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The first column at which the sums of columns reach what is wanted, and the sum of those before it."""
    after = before[:, None] + sums.cumsum(dim=-1)
    column = (after < wanted[:, None]).sum(dim=-1).clamp(max=sums.shape[-1] - 1)
    return column, (after - sums).gather(-1, column[:, None])[:, 0]

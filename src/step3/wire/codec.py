"""Activations and partial sums to and from the bytes of the wire.

fp8 is float8_e4m3fn with one float32 scale for each token and 128 channels (the last block of a token may be
shorter): `value = q * scale`, the scale the block's largest magnitude over 448. A block that holds a NaN or
an infinity has no finite scale and decodes to NaN throughout: what is not finite is carried, never clipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from step3.wire.formats import BLOCK

FP8_MAX = 448.0

_LEAST_SCALE = torch.finfo(torch.float32).tiny
_SIGN_EXPONENT_MANTISSA = 0xBF80 - (1 << 16)
"""An e4m3 value, shifted to where float16 has the same parts; its bits as int16."""
_FLOAT16_OVER_E4M3 = 2.0**8
"""What the biases of the two exponents differ by."""


@dataclass(frozen=True, eq=False)
class Fp8:
    """Activations that are fp8 already.

    Attributes:
        values: `[tokens, hidden]` float8_e4m3fn.
        scales: `[tokens, ceil(hidden / 128)]` float32.
    """

    values: Tensor
    scales: Tensor


def encode_fp8(x: Tensor, values: Tensor, scales: Tensor) -> None:
    """Writes activations as fp8.

    Args:
        x: `[tokens, hidden]`, any float dtype and device.
        values: `[tokens, hidden]` float8_e4m3fn, written.
        scales: `[tokens, ceil(hidden / 128)]` float32, written.
    """
    for blocks, q, scale in _blocks(x, values, scales):
        wide = blocks.float()
        largest = wide.abs().amax(-1)
        least = torch.div(largest, FP8_MAX).clamp_(min=_LEAST_SCALE)
        least += largest - largest  # NaN if the largest is infinite
        scale.copy_(least)
        q.copy_(wide / least.unsqueeze(-1))


def decode_fp8(values: Tensor, scales: Tensor, out: Tensor) -> None:
    """Reads fp8 activations.

    Args:
        values: `[tokens, hidden]` float8_e4m3fn.
        scales: `[tokens, ceil(hidden / 128)]` float32.
        out: `[tokens, hidden]`, float32 or bfloat16, written; rounded once.
    """
    # torch converts float8 one value at a time; as float16 with the same bits it is ten times faster. A NaN
    # becomes a number thereby, but its block has a scale of NaN.
    for blocks, q, scale in _blocks(out, values, scales):
        bits = q.view(torch.int8).to(torch.int16).bitwise_left_shift_(7)
        half = bits.bitwise_and_(_SIGN_EXPONENT_MANTISSA).view(torch.float16)
        blocks.copy_(half.float().mul_((scale * _FLOAT16_OVER_E4M3).unsqueeze(-1)))


def _blocks(x: Tensor, values: Tensor, scales: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """`[tokens, blocks, channels]` of x and values, `[tokens, blocks]` of scales, a short block last."""
    hidden = x.shape[1]
    whole = hidden // BLOCK
    cut = whole * BLOCK
    parts = []
    if whole:
        parts.append(
            (
                x[:, :cut].unflatten(1, (whole, BLOCK)),
                values[:, :cut].unflatten(1, (whole, BLOCK)),
                scales[:, :whole],
            )
        )
    if cut < hidden:
        parts.append((x[:, cut:].unsqueeze(1), values[:, cut:].unsqueeze(1), scales[:, whole:]))
    return parts

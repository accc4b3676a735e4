"""Activations and partial sums to and from the bytes of the wire.

fp8 is float8_e4m3fn with one float32 scale for each token and 128 channels (the last block of a token may be
shorter): `value = q * scale`, the scale the block's largest magnitude over 448. A block that holds a NaN or
an infinity has no finite scale and decodes to NaN throughout: what is not finite is carried, never clipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from step3.wire.formats import BLOCK
from step3.wire.native import open_library

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
    library = open_library()
    if library is not None and _is_plain(x, values, scales):
        library.step3_wire_encode(
            x.data_ptr(), x.dtype is torch.bfloat16, *x.shape, values.data_ptr(), scales.data_ptr()
        )
        return
    for blocks, q, scale in _blocks(x, values, scales):
        wide = blocks.float()
        largest = torch.maximum(wide.amax(-1), wide.amin(-1).neg_())
        least = torch.div(largest, FP8_MAX).clamp_(min=_LEAST_SCALE)
        least += largest - largest  # NaN if the largest is infinite
        scale.copy_(least)
        # One temporary at most: with two, the allocator gives their pages back and takes them anew each time.
        in_place = None if blocks.dtype == torch.float32 else wide
        q.copy_(torch.div(wide, least.unsqueeze(-1), out=in_place))


def decode_fp8(values: Tensor, scales: Tensor, out: Tensor) -> None:
    """Reads fp8 activations.

    Args:
        values: `[tokens, hidden]` float8_e4m3fn.
        scales: `[tokens, ceil(hidden / 128)]` float32.
        out: `[tokens, hidden]`, float32 or bfloat16, written; rounded once.
    """
    library = open_library()
    if library is not None and _is_plain(out, values, scales):
        library.step3_wire_decode(
            values.data_ptr(), scales.data_ptr(), *out.shape, out.data_ptr(), out.dtype is torch.bfloat16
        )
        return
    # torch converts float8 one value at a time; as float16 with the same bits it is ten times faster. A NaN
    # becomes a number thereby, but its block has a scale of NaN.
    for blocks, q, scale in _blocks(out, values, scales):
        bits = q.view(torch.int8).to(torch.int16).bitwise_left_shift_(7)
        half = bits.bitwise_and_(_SIGN_EXPONENT_MANTISSA).view(torch.float16)
        blocks.copy_(half.float().mul_((scale * _FLOAT16_OVER_E4M3).unsqueeze(-1)))


def _is_plain(wide: Tensor, values: Tensor, scales: Tensor) -> bool:
    """Whether the library can work on some activations and their fp8: on the CPU, rows without gaps."""
    return wide.dtype in (torch.float32, torch.bfloat16) and all(
        one.is_cpu and one.is_contiguous() for one in (wide, values, scales)
    )


def _blocks(x: Tensor, values: Tensor, scales: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """`[tokens, blocks, channels]` of x and values, `[tokens, blocks]` of scales; a short block by itself."""
    hidden = x.shape[1]
    whole = hidden // BLOCK
    cut = whole * BLOCK
    if whole:
        shape = (whole, BLOCK)
        yield x[:, :cut].unflatten(1, shape), values[:, :cut].unflatten(1, shape), scales[:, :whole]
    if cut < hidden:
        yield x[:, cut:].unsqueeze(1), values[:, cut:].unsqueeze(1), scales[:, whole:]

"""Activations and partial sums to and from the bytes of the wire.

fp8 is float8_e4m3fn with one float32 scale for each token and 128 channels (the last block of a token may be
shorter): `value = q * scale`, the scale the block's largest magnitude over 448. A block that holds a NaN or
an infinity has no finite scale and decodes to NaN throughout: what is not finite is carried, never clipped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from step3.wire.formats import BLOCK

FP8_MAX = 448.0
_LEAST_SCALE = torch.finfo(torch.float32).tiny


def encode_fp8(x: Tensor, values: Tensor, scales: Tensor) -> None:
    """Writes activations as fp8.

    Args:
        x: `[tokens, hidden]`, any float dtype and device.
        values: `[tokens, hidden]` float8_e4m3fn, written.
        scales: `[tokens, ceil(hidden / 128)]` float32, written.
    """
    for blocks, q, scale in _blocks(x, values, scales):
        blocks = blocks.float()
        least = torch.div(blocks.abs().amax(-1), FP8_MAX).clamp_(min=_LEAST_SCALE)
        scale.copy_(least)
        q.copy_(blocks / least.unsqueeze(-1))


def decode_fp8(values: Tensor, scales: Tensor, out: Tensor) -> None:
    """Reads fp8 activations.

    Args:
        values: `[tokens, hidden]` float8_e4m3fn.
        scales: `[tokens, ceil(hidden / 128)]` float32.
        out: `[tokens, hidden]`, float32 or bfloat16, written; rounded once.
    """
    for blocks, q, scale in _blocks(out, values, scales):
        blocks.copy_(q.float() * scale.unsqueeze(-1))


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

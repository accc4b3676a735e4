"""Block-fp8: float8_e4m3fn weights with one float32 scale a block of 128 x 128, `weight = q * scale`.

The layout of the published fp8 checkpoint and of DeepSeek-V3 before it (arXiv 2412.19437, section 3.3).
Works on the last two dimensions; leading ones (experts) are kept.
"""

import torch
from torch import Tensor

from step3.checkpoint.config import BLOCK
from step3.checkpoint.errors import CheckpointError

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max


def quantise(weight: Tensor, name: str = "weight") -> tuple[Tensor, Tensor]:
    """Round `weight` to block-fp8.

    Each block's largest magnitude becomes 448, the largest float8_e4m3fn; the rest is rounded to nearest,
    ties to even. So every value is off by at most 2^-4 of its magnitude, or 2^-10 of the scale near zero.

    Args:
        weight: float `[..., rows, columns]`.
        name: what an error calls it.

    Returns:
        q: float8_e4m3fn `[..., rows, columns]`.
        scale: float32 `[..., ceil(rows / 128), ceil(columns / 128)]`; 1 for a block of zeros.

    Raises:
        CheckpointError: an infinity or NaN in `weight`.
    """
    rows, columns = weight.shape[-2:]
    blocks = _blocks(weight)
    peak = blocks.abs().amax(dim=(-3, -1))
    if not torch.isfinite(peak).all():
        raise CheckpointError(f"{name}: expected finite weights, found an infinity or NaN")
    # A peak so small that its scale would be subnormal or zero keeps a normal scale and uses fewer steps.
    scale = (peak / FP8_MAX).clamp_(min=torch.finfo(torch.float32).tiny)
    scale = torch.where(peak > 0, scale, 1.0)
    q = (blocks / scale[..., :, None, :, None]).clamp_(-FP8_MAX, FP8_MAX).to(FP8)
    return q.flatten(-4, -3).flatten(-2, -1)[..., :rows, :columns].contiguous(), scale


def dequantise(q: Tensor, scale: Tensor, out: Tensor | None = None) -> Tensor:
    """`q * scale` in float32, each product rounded once.

    Args:
        q: float8_e4m3fn `[..., rows, columns]`.
        scale: float32 `[..., ceil(rows / 128), ceil(columns / 128)]`.
        out: float32 of q's shape, to write to; made if None.
    """
    rows, columns = q.shape[-2:]
    out = q.new_empty(q.shape, dtype=torch.float32) if out is None else out
    out.copy_(q)
    scales = scale.repeat_interleave(BLOCK, -1)[..., :columns]
    for block, start in enumerate(range(0, rows, BLOCK)):
        out[..., start : start + BLOCK, :] *= scales[..., block : block + 1, :]
    return out


def _blocks(matrix: Tensor) -> Tensor:
    """A float32 copy of `[..., rows, columns]` as `[..., R, 128, C, 128]`, padded with zeros."""
    *lead, rows, columns = matrix.shape
    padded_rows, padded_columns = -(-rows // BLOCK) * BLOCK, -(-columns // BLOCK) * BLOCK
    padded = matrix.new_empty((*lead, padded_rows, padded_columns), dtype=torch.float32)
    padded[..., :rows, :columns] = matrix
    padded[..., rows:, :] = 0
    padded[..., :rows, columns:] = 0
    return padded.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))

"""Root-mean-square norm."""

from torch import Tensor
from torch.nn import functional as F


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`weight * (x / rms(x))`: computed in float32, cast back, then multiplied by the weight.

    Args:
        x: `[..., size]`.
        weight: `[size]`.

    Returns:
        The shape and dtype of `x`.
    """
    wide = x.float()
    normed = wide * (wide.pow(2).mean(-1, keepdim=True) + eps).rsqrt()
    return weight * normed.to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm_reference`, fast."""
    # Without a weight, torch computes in float32 and rounds once: the multiplication comes after the cast.
    return F.rms_norm(x, x.shape[-1:], None, eps).mul_(weight)

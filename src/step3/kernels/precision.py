"""The precision of what must not be rounded: norms, softmax, rotation, the router, weighted sums."""

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """`x` in float32; float64 stays, so that a float64 network is float64 throughout."""
    return x if x.dtype == torch.float64 else x.float()

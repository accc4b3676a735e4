"""The memory of keys and values: which bytes a block has, and how many blocks a budget gives."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from step3.checkpoint import TextSizes


def bytes_per_block(sizes: TextSizes, block_size: int, dtype: torch.dtype) -> int:
    """Keys and values of `block_size` tokens in all layers: `2 * head_dim` values a token and layer (MFA)."""
    return sizes.num_hidden_layers * 2 * block_size * sizes.head_dim * dtype.itemsize


class KVStore:
    """Keys and values of all layers, `[num_blocks, block_size, head_dim]` each."""

    def __init__(
        self,
        sizes: TextSizes,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_blocks, self.block_size, self.dtype = num_blocks, block_size, dtype
        # Zeros: places beyond a context are read and masked, and a mask does not make NaN go away.
        shape = (sizes.num_hidden_layers, 2, num_blocks, block_size, sizes.head_dim)
        if torch.device(device).type == "cpu":
            # NumPy leaves the zeros to the system: memory is taken as tokens fill it.
            octets = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
            self._tensor = torch.from_numpy(octets).view(dtype).view(shape)
        else:
            self._tensor = torch.zeros(shape, dtype=dtype, device=device)
        self._layers = [(layer[0], layer[1]) for layer in self._tensor]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer."""
        return self._layers[index]

    @property
    def device(self) -> torch.device:
        return self._tensor.device

    @property
    def nbytes(self) -> int:
        return self._tensor.nbytes

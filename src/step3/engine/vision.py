"""The vision tower as the engine runs it, with the convolutions and the projector behind it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from step3.checkpoint import VISION_SIDE, Checkpoint, Part
from step3.engine.network import VisionNetwork

# The class row stands first this many times; its rows are dropped after the last layer.
CLASS_ROWS = 4


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": _quick_gelu, "gelu": F.gelu}


class VisionTower:
    """Pixels to features. The norms stand after attention and MLP, inside the residual.

    Attributes:
        dtype: of the features.
    """

    def __init__(self, network: VisionNetwork, weights: dict[str, Tensor]) -> None:
        self._network, self._weights = network, weights
        self._activation = _ACTIVATIONS[network.hidden_act]
        self._grid = network.sizes.image_size // network.sizes.patch_size
        self._positions: dict[int, Tensor] = {}
        self.dtype = weights["vit_large_projector.weight"].dtype

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        network: VisionNetwork,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        in_place: bool = False,
    ) -> VisionTower:
        """Reads the vision side of a checkpoint, or uses it from the mapped files.

        Raises:
            CheckpointError: it is to stay in place but cannot be mapped, or is not bfloat16.
        """
        if in_place:
            return cls(network, checkpoint.matrices(Part(VISION_SIDE), in_place=True)[0])
        return cls(network, checkpoint.load(Part(VISION_SIDE), dtype=dtype, device=device))

    @property
    def nbytes(self) -> int:
        """Memory of the weights."""
        return sum(weight.nbytes for weight in self._weights.values())

    def encode(self, pixels: Tensor) -> Tensor:
        """Pictures of one size into features.

        Args:
            pixels: `[pictures, 3, side, side]`, normalised.

        Returns:
            `[pictures, features, hidden]`: 169 features for 728 px, 81 for 504 px.
        """
        device = self._weights["vit_large_projector.weight"].device
        rows = self._embed(pixels.to(device, self.dtype))
        for layer in range(self._network.sizes.num_hidden_layers):
            at = f"vision_model.transformer.layers.{layer}."
            rows = rows + self._norm(at + "layer_norm1", self._attention(at + "self_attn.", rows))
            rows = rows + self._norm(at + "layer_norm2", self._mlp(at + "mlp.", rows))
        rows = rows[:, CLASS_ROWS:]
        grid = int(rows.shape[1] ** 0.5)
        picture = rows.transpose(1, 2).unflatten(2, (grid, grid))
        picture = F.conv2d(picture, *self._pair("vit_downsampler"), stride=self._network.stride)
        picture = F.conv2d(picture, *self._pair("vit_downsampler2"), stride=2, padding=1)
        return self._linear("vit_large_projector", picture.flatten(2).transpose(1, 2))

    def _pair(self, name: str) -> tuple[Tensor, Tensor]:
        return self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *self._pair(name), eps=self._network.layer_norm_eps)

    def _embed(self, pixels: Tensor) -> Tensor:
        """`[pictures, 3, side, side]` → `[pictures, 4 + grid², hidden]`."""
        at = "vision_model.embeddings."
        patches = F.conv2d(pixels, *self._pair(at + "patch_embedding"), stride=self._network.sizes.patch_size)
        rows = patches.flatten(2).transpose(1, 2)
        class_row = self._weights[at + "class_embedding"].expand(rows.shape[0], 1, -1)
        rows = torch.cat((class_row, rows), 1) + self._positions_of(patches.shape[-1])
        return torch.cat((rows[:, :1].expand(-1, CLASS_ROWS - 1, -1), rows), 1)

    def _positions_of(self, grid: int) -> Tensor:
        """`[1 + grid², hidden]`, resized (bicubic, antialiased, float32) from the grid it was trained on."""
        if grid not in self._positions:
            table = self._weights["vision_model.embeddings.position_embedding.weight"]
            if grid != self._grid:
                picture = table[1:].float().view(1, self._grid, self._grid, -1).permute(0, 3, 1, 2)
                resized = F.interpolate(
                    picture, (grid, grid), mode="bicubic", antialias=True, align_corners=False
                )
                table = torch.cat((table[:1], resized.flatten(2)[0].T.to(table.dtype)))
            self._positions[grid] = table
        return self._positions[grid]

    def _attention(self, at: str, rows: Tensor) -> Tensor:
        pictures, length, hidden = rows.shape
        heads = self._network.num_attention_heads
        qkv = self._linear(at + "qkv_proj", rows).view(pictures, length, 3, heads, hidden // heads)
        mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        return self._linear(at + "out_proj", mixed.transpose(1, 2).reshape(pictures, length, hidden))

    def _mlp(self, at: str, rows: Tensor) -> Tensor:
        return self._linear(at + "fc2", self._activation(self._linear(at + "fc1", rows)))

"""The vision tower as the engine runs it, with the convolutions and the projector behind it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from step3.checkpoint import VISION_SIDE, Checkpoint, Part
from step3.engine.network import VisionNetwork
from step3.engine.vision_products import KernelProducts, TorchProducts, VisionProducts, is_product
from step3.kernels.cpu.weights import Placement

# The class row stands first this many times; its rows are dropped after the last layer.
CLASS_ROWS = 4


class VisionTower:
    """Pixels to features. The norms stand after attention and MLP, inside the residual.

    Attributes:
        dtype: of the features.
    """

    def __init__(self, network: VisionNetwork, weights: dict[str, Tensor], products: VisionProducts) -> None:
        """
        Args:
            weights: those that `products` does not hold, by official names.
        """
        self._network, self._weights, self._products = network, weights, products
        self._grid = network.sizes.image_size // network.sizes.patch_size
        self._positions: dict[int, Tensor] = {}
        table = weights["vision_model.embeddings.position_embedding.weight"]
        self.dtype, self._device = table.dtype, table.device

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        network: VisionNetwork,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        placement: Placement | None = None,
    ) -> VisionTower:
        """Reads the vision side of a checkpoint.

        Args:
            placement: where what the CPU kernels multiply goes, if they do; then the other tensors stay in
                place too if those do.

        Raises:
            CheckpointError: it is to stay in place but cannot be mapped, or is not bfloat16.
        """
        if placement is None:
            return cls.of(network, checkpoint.load(Part(VISION_SIDE), dtype=dtype, device=device))
        weights, mapped = checkpoint.matrices(Part(VISION_SIDE), placement.in_place)
        if not placement.in_place:
            small = {name: weight for name, weight in weights.items() if not is_product(name, weight)}
            weights.update({name: weight.to(dtype, copy=mapped) for name, weight in small.items()})
        return cls.of(network, weights, placement, mapped=mapped)

    @classmethod
    def of(
        cls,
        network: VisionNetwork,
        weights: dict[str, Tensor],
        placement: Placement | None = None,
        *,
        mapped: bool = False,
    ) -> VisionTower:
        """A tower of weights by official names; with a placement the CPU kernels compute it.

        Args:
            mapped: what is multiplied are views of a mapped file (see `Placement.take`).
        """
        layers = {name.removesuffix("weight") for name, one in weights.items() if is_product(name, one)}
        multiplied = {name: one for name, one in weights.items() if name.rpartition(".")[0] + "." in layers}
        rest = {name: one for name, one in weights.items() if name not in multiplied}
        act = network.hidden_act
        if placement is None:
            return cls(network, rest, TorchProducts(multiplied, act))
        return cls(network, rest, KernelProducts(placement, multiplied, act, mapped=mapped))

    @property
    def nbytes(self) -> int:
        """Memory of the weights."""
        return sum(weight.nbytes for weight in self._weights.values()) + self._products.nbytes

    def encode(self, pixels: Tensor) -> Tensor:
        """Pictures of one size into features.

        Args:
            pixels: `[pictures, 3, side, side]`, normalised.

        Returns:
            `[pictures, features, hidden]`: 169 features for 728 px, 81 for 504 px.
        """
        rows = self._embed(pixels.to(self._device, self.dtype))
        for layer in range(self._network.sizes.num_hidden_layers):
            at = f"vision_model.transformer.layers.{layer}."
            attended = self._products.attend(at + "self_attn", rows, self._network.num_attention_heads)
            rows = rows + self._norm(at + "layer_norm1", attended)
            rows = rows + self._norm(at + "layer_norm2", self._products.mlp(at + "mlp", rows))
        rows = rows[:, CLASS_ROWS:]
        grid = int(rows.shape[1] ** 0.5)
        picture = rows.transpose(1, 2).unflatten(2, (grid, grid))
        picture = self._products.convolve("vit_downsampler", picture, self._network.stride)
        picture = self._products.convolve("vit_downsampler2", picture, 2, padding=1)
        return self._products.dense("vit_large_projector", picture.flatten(2).transpose(1, 2))

    def _pair(self, name: str) -> tuple[Tensor, Tensor]:
        return self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *self._pair(name), eps=self._network.layer_norm_eps)

    def _embed(self, pixels: Tensor) -> Tensor:
        """`[pictures, 3, side, side]` → `[pictures, 4 + grid², hidden]`."""
        at = "vision_model.embeddings."
        patches = self._products.convolve(at + "patch_embedding", pixels, self._network.sizes.patch_size)
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

"""The vision tower as the engine runs it, with the convolutions and the projector behind it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from step3.checkpoint import VISION_SIDE, Checkpoint, Part
from step3.engine.network import VisionNetwork
from step3.kernels.cpu.vision import PackedDense, attend_picture
from step3.kernels.cpu.weights import Placement, Workspace

# The class row stands first this many times; its rows are dropped after the last layer.
CLASS_ROWS = 4


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _is_dense(name: str, weight: Tensor) -> bool:
    return weight.dim() in (2, 4) and not name.endswith(("class_embedding", "position_embedding.weight"))


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": _quick_gelu, "gelu": F.gelu}


class VisionTower:
    """Pixels to features. The norms stand after attention and MLP, inside the residual.

    Attributes:
        dtype: of the features.
    """

    def __init__(
        self,
        network: VisionNetwork,
        weights: dict[str, Tensor],
        dense: dict[str, PackedDense] | None = None,
        kernel_sides: dict[str, int] | None = None,
        workspace: Workspace | None = None,
    ) -> None:
        """
        Args:
            dense: linear layers and convolutions that the CPU kernels compute, by name; their weights are not
                in `weights`.
            kernel_sides: of those convolutions.
            workspace: of the CPU kernels, if they compute attention.
        """
        self._network, self._weights = network, weights
        self._dense, self._workspace = dense or {}, workspace
        self._kernel_sides = kernel_sides or {}
        self._activation = _ACTIVATIONS[network.hidden_act]
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
            return cls(network, checkpoint.load(Part(VISION_SIDE), dtype=dtype, device=device))
        weights, mapped = checkpoint.matrices(Part(VISION_SIDE), placement.in_place)
        if not placement.in_place:
            small = {name: weight for name, weight in weights.items() if not _is_dense(name, weight)}
            weights.update({name: weight.to(dtype, copy=mapped) for name, weight in small.items()})
        return cls.placed(network, weights, placement, mapped=mapped)

    @classmethod
    def placed(
        cls, network: VisionNetwork, weights: dict[str, Tensor], placement: Placement, *, mapped: bool = False
    ) -> VisionTower:
        """A tower whose products and attention the CPU kernels compute; `weights` by official names.

        Args:
            mapped: what is multiplied are views of a mapped file (see `Placement.take`).
        """
        rest, dense = dict(weights), {}
        sides = {
            name.removesuffix(".weight"): one.shape[-1] for name, one in weights.items() if one.dim() == 4
        }
        for name in [name.removesuffix(".weight") for name, one in weights.items() if _is_dense(name, one)]:
            weight, bias = rest.pop(f"{name}.weight"), rest.pop(f"{name}.bias", None)
            dense[name] = PackedDense(placement, weight.flatten(1), bias, mapped=mapped)
        return cls(network, rest, dense, sides, Workspace(placement.library))

    @property
    def nbytes(self) -> int:
        """Memory of the weights."""
        return sum(weight.nbytes for weight in (*self._weights.values(), *self._dense.values()))

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
            rows = rows + self._norm(at + "layer_norm1", self._attention(at + "self_attn.", rows))
            rows = rows + self._norm(at + "layer_norm2", self._mlp(at + "mlp.", rows))
        rows = rows[:, CLASS_ROWS:]
        grid = int(rows.shape[1] ** 0.5)
        picture = rows.transpose(1, 2).unflatten(2, (grid, grid))
        picture = self._convolve("vit_downsampler", picture, self._network.stride)
        picture = self._convolve("vit_downsampler2", picture, 2, padding=1)
        return self._linear("vit_large_projector", picture.flatten(2).transpose(1, 2))

    def _pair(self, name: str) -> tuple[Tensor, Tensor]:
        return self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        if name in self._dense and self._workspace is not None:
            return self._dense[name].forward(x, self._workspace)
        return F.linear(x, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))

    def _convolve(self, name: str, picture: Tensor, stride: int, padding: int = 0) -> Tensor:
        if name not in self._dense or self._workspace is None:
            return F.conv2d(picture, *self._pair(name), stride=stride, padding=padding)
        side = self._kernel_sides[name]
        patches = F.unfold(picture, side, padding=padding, stride=stride).transpose(1, 2)
        convolved = self._dense[name].forward(patches, self._workspace).transpose(1, 2)
        height = (picture.shape[2] + 2 * padding - side) // stride + 1
        return convolved.unflatten(2, (height, -1))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *self._pair(name), eps=self._network.layer_norm_eps)

    def _embed(self, pixels: Tensor) -> Tensor:
        """`[pictures, 3, side, side]` → `[pictures, 4 + grid², hidden]`."""
        at = "vision_model.embeddings."
        patches = self._convolve(at + "patch_embedding", pixels, self._network.sizes.patch_size)
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
        if self._workspace is not None:
            return self._linear(at + "out_proj", attend_picture(qkv, self._workspace))
        mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        return self._linear(at + "out_proj", mixed.transpose(1, 2).reshape(pictures, length, hidden))

    def _mlp(self, at: str, rows: Tensor) -> Tensor:
        if at + "fc1" in self._dense and self._workspace is not None and self._activation is _quick_gelu:
            inner = self._dense[at + "fc1"].forward(rows, self._workspace, quick_gelu=True)
        else:
            inner = self._activation(self._linear(at + "fc1", rows))
        return self._linear(at + "fc2", inner)

"""The vision tower's products, convolutions and attention: by torch, or by the CPU kernels in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from step3.kernels.cpu.vision import PackedDense, picture_attention, picture_mlp
from step3.kernels.cpu.weights import Placement, Workspace


class VisionProducts(Protocol):
    """What computes the tower's weights of two and more dimensions; layers go by their official names.

    Attributes:
        nbytes: memory of these weights.
    """

    @property
    def nbytes(self) -> int: ...

    def dense(self, name: str, x: Tensor) -> Tensor:
        """`[..., columns]` → `[..., rows]`."""
        ...

    def convolve(self, name: str, picture: Tensor, stride: int, padding: int = 0) -> Tensor:
        """`[pictures, channels, height, width]` of squares → the same of what a convolution makes of it."""
        ...

    def attend(self, name: str, rows: Tensor, heads: int) -> Tensor:
        """`[pictures, length, hidden]` → the same: `qkv_proj`, each row to all of its picture, `out_proj`."""
        ...

    def mlp(self, name: str, rows: Tensor) -> Tensor:
        """`[pictures, length, hidden]` → the same: `fc1`, the tower's activation, `fc2`."""
        ...


def is_product(name: str, weight: Tensor) -> bool:
    """Whether a weight of the tower is multiplied; the others are added, looked up or norms."""
    return weight.dim() in (2, 4) and not name.endswith(("class_embedding", "position_embedding.weight"))


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _attend(qkv: Tensor, heads: int) -> Tensor:
    """`[pictures, length, 3 * heads * size]` → `[pictures, length, heads * size]`, each row to all rows."""
    query, key, value = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class TorchProducts:
    """`VisionProducts` of weights in any dtype, on any device."""

    def __init__(self, weights: Mapping[str, Tensor], hidden_act: str) -> None:
        self._weights, self._activation = weights, ACTIVATIONS[hidden_act]

    @property
    def nbytes(self) -> int:
        return sum(weight.nbytes for weight in self._weights.values())

    def dense(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, *self._pair(name))

    def convolve(self, name: str, picture: Tensor, stride: int, padding: int = 0) -> Tensor:
        return F.conv2d(picture, *self._pair(name), stride=stride, padding=padding)

    def attend(self, name: str, rows: Tensor, heads: int) -> Tensor:
        return self.dense(f"{name}.out_proj", _attend(self.dense(f"{name}.qkv_proj", rows), heads))

    def mlp(self, name: str, rows: Tensor) -> Tensor:
        return self.dense(f"{name}.fc2", self._activation(self.dense(f"{name}.fc1", rows)))

    def _pair(self, name: str) -> tuple[Tensor, Tensor | None]:
        return self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias")


class KernelProducts:
    """`VisionProducts` of the CPU kernels; a convolution is the product of its patches."""

    def __init__(
        self, placement: Placement, weights: Mapping[str, Tensor], hidden_act: str, *, mapped: bool = False
    ) -> None:
        """
        Args:
            mapped: the weights are views of a mapped file (see `Placement.take`).
        """
        self._workspace, self._activation = Workspace(placement.library), ACTIVATIONS[hidden_act]
        self._layers: dict[str, PackedDense] = {}
        self._sides: dict[str, int] = {}
        for name, weight in weights.items():
            layer = name.removesuffix(".weight")
            if layer == name:
                continue
            bias = weights.get(f"{layer}.bias")
            self._layers[layer] = PackedDense(placement, weight.flatten(1), bias, mapped=mapped)
            self._sides[layer] = weight.shape[-1]

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self._layers.values())

    def dense(self, name: str, x: Tensor) -> Tensor:
        return self._layers[name].forward(x, self._workspace)

    def convolve(self, name: str, picture: Tensor, stride: int, padding: int = 0) -> Tensor:
        side = self._sides[name]
        patches = F.unfold(picture, side, padding=padding, stride=stride).transpose(1, 2)
        convolved = self._layers[name].forward(patches, self._workspace).transpose(1, 2)
        height = (picture.shape[2] + 2 * padding - side) // stride + 1
        return convolved.unflatten(2, (height, -1))

    def attend(self, name: str, rows: Tensor, heads: int) -> Tensor:
        qkv, out_proj = self._layers[f"{name}.qkv_proj"], self._layers[f"{name}.out_proj"]
        if rows.shape[2] // heads % 2:
            return self.dense(f"{name}.out_proj", _attend(self.dense(f"{name}.qkv_proj", rows), heads))
        return picture_attention(qkv, out_proj, rows, heads, self._workspace)

    def mlp(self, name: str, rows: Tensor) -> Tensor:
        fc1, fc2 = self._layers[f"{name}.fc1"], self._layers[f"{name}.fc2"]
        if self._activation is quick_gelu:
            return picture_mlp(fc1, fc2, rows, self._workspace)
        return fc2.forward(self._activation(fc1.forward(rows, self._workspace)), self._workspace)

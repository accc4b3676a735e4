"""A shard of every FFN: weights in, partial sums out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from step3.checkpoint import Checkpoint, Part
from step3.errors import Step3Error
from step3.ffn.call import FFNCall
from step3.ffn.split import WHOLE, Piece
from step3.kernels.cpu import open_library, why_not, why_not_int8
from step3.kernels.cpu.ffn import CpuSwiGLU, PackedFFN
from step3.kernels.cpu.weights import InPlace, Packing, Placement, Workspace
from step3.kernels.experts import SwiGLU, experts_swiglu, swiglu
from step3.kernels.linear import BlockFp8, Weight, fuse, stored_weight


@dataclass(frozen=True, eq=False)
class LayerFFN:
    """A shard's weights of one layer; None where the shard holds nothing of a kind.

    Attributes:
        always: dense FFN or shared expert, which every token uses.
        experts: routed experts, the first of them numbered `first`.
    """

    always: SwiGLU | None
    experts: SwiGLU | None = None
    first: int = 0


class FFNShard:
    """Computes calls with the part of every FFN that it holds."""

    def __init__(self, layers: Sequence[LayerFFN | PackedFFN]) -> None:
        self._layers = layers

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        piece: Piece = WHOLE,
        in_place: bool = False,
        integers: int = 0,
    ) -> FFNShard:
        """Reads a piece of every layer; plain weights become `dtype`, block-fp8 stays as it is stored.

        Args:
            in_place: use the weights from the mapped files instead of reading them; for the CPU kernels.
            integers: bits of the integers that the CPU kernels may multiply in where many rows meet weights
                and the processor is faster so; 0 for none, 8 for block-fp8 only.

        Raises:
            CheckpointError: a tensor is missing or misshapen, or the piece cuts through a block of 128; it is
                to stay in place but cannot be mapped, or is of another dtype than bfloat16 and block-fp8.
            Step3Error: weights are to stay in place, or activations to be rounded, but the CPU kernels cannot
                compute this.
        """
        if integers == 8 and (
            reason := why_not_int8(open_library(), checkpoint.config.quantisation is not None)
        ):
            raise Step3Error(f"int8_activations cannot be had: {reason}")
        sizes = checkpoint.config.text
        first = piece.experts.start if piece.experts else 0
        if dtype == torch.bfloat16 and torch.device(device).type == "cpu" and (library := open_library()):
            placement = (InPlace if in_place else Packing)(library, integers=integers)
            return cls(_packed_layers(checkpoint, placement, piece, first))
        if in_place:
            raise Step3Error(
                "FFN weights can be used in place by the CPU kernels only, in bfloat16"
                + ("" if open_library() else f"; {why_not()}")
            )

        def read(part: Part | None, name: str) -> SwiGLU | None:
            return _swiglu(checkpoint.load(part, dtype=dtype, device=device), name) if part else None

        layers = []
        for layer in range(sizes.num_hidden_layers):
            at = f"model.layers.{layer}"
            if layer in sizes.moe_layers:
                shared = read(piece.always_part(layer, sizes.share_expert_dim), f"{at}.share_expert")
                layers.append(LayerFFN(shared, read(piece.routed_part(layer), f"{at}.moe"), first))
            else:
                layers.append(LayerFFN(read(piece.always_part(layer, sizes.intermediate_size), f"{at}.mlp")))
        return cls(layers)

    @property
    def packed(self) -> list[PackedFFN] | None:
        """The layers, where the CPU kernels compute them all."""
        packed = [layer for layer in self._layers if isinstance(layer, PackedFFN)]
        return packed if len(packed) == len(self._layers) else None

    @property
    def nbytes(self) -> int:
        """Memory of the weights."""
        return sum(
            layer.nbytes if isinstance(layer, PackedFFN) else sum(weight.nbytes for weight in _weights(layer))
            for layer in self._layers
        )

    def forward(self, call: FFNCall) -> Tensor:
        """The shard's part of the layer's output, `[tokens, hidden]` in the dtype of `call.x`."""
        ffn = self._layers[call.layer]
        if isinstance(ffn, PackedFFN):
            return ffn.forward(call.x, call.expert_ids, call.expert_weights)
        always = None if ffn.always is None else swiglu(call.x, ffn.always)
        if ffn.experts is None or call.expert_ids is None or call.expert_weights is None:
            return torch.zeros_like(call.x) if always is None else always
        routed = experts_swiglu(call.x, call.expert_ids, call.expert_weights, ffn.experts, ffn.first)
        return routed if always is None else routed.add_(always)


def _swiglu(tensors: dict[str, Tensor], name: str) -> SwiGLU | None:
    """One FFN out of what was read, or None where the piece has nothing of it; `tensors` is emptied."""

    def take(projection: str) -> Weight:
        weight = tensors.pop(f"{name}.{projection}.weight")
        scale = tensors.pop(f"{name}.{projection}.weight_scale_inv", None)
        return weight if scale is None else BlockFp8(weight, scale)

    if f"{name}.down_proj.weight" not in tensors:
        return None
    return SwiGLU(fuse((take("gate_proj"), take("up_proj"))), take("down_proj"))


def _weights(layer: LayerFFN) -> Iterator[Weight]:
    for ffn in (layer.always, layer.experts):
        if ffn is not None:
            yield from (*ffn.gate_up, ffn.down)


def _packed_layers(checkpoint: Checkpoint, placement: Placement, piece: Piece, first: int) -> list[PackedFFN]:
    """A piece of every layer, straight from the mapped files where their data is aligned."""
    sizes, workspace = checkpoint.config.text, Workspace(placement.library)

    def read(part: Part | None, name: str) -> CpuSwiGLU | None:
        if part is None:
            return None
        tensors, mapped = checkpoint.matrices(part, placement.in_place)
        if f"{name}.down_proj.weight" not in tensors:
            return None
        gate, up, down = (
            stored_weight(tensors, f"{name}.{projection}.weight")
            for projection in ("gate_proj", "up_proj", "down_proj")
        )
        return CpuSwiGLU.take(placement, gate, up, down, mapped=mapped)

    layers = []
    for layer in range(sizes.num_hidden_layers):
        at = f"model.layers.{layer}"
        if layer in sizes.moe_layers:
            shared = read(piece.always_part(layer, sizes.share_expert_dim), f"{at}.share_expert")
            layers.append(PackedFFN(workspace, shared, read(piece.routed_part(layer), f"{at}.moe"), first))
        else:
            always = read(piece.always_part(layer, sizes.intermediate_size), f"{at}.mlp")
            layers.append(PackedFFN(workspace, always))
    return layers

"""The decoder on the CPU kernels: packed weights, a layer's attention side in one call.

The hidden states stay in float32 between the layers; what is multiplied is bfloat16.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from step3.checkpoint import Checkpoint, Part
from step3.checkpoint.layout import Kind
from step3.engine.batch import Batch
from step3.engine.kv_store import KVStore
from step3.engine.network import Network
from step3.ffn.call import FFNCall
from step3.kernels.cpu.attention import (
    AttentionShape,
    PackedAttention,
    PackedLayers,
    PackedStep,
    final_norm,
    packed_linear,
)
from step3.kernels.cpu.beginning import Beginning
from step3.kernels.cpu.decoder import WholeDecoder
from step3.kernels.cpu.ffn import PackedFFN
from step3.kernels.cpu.weights import CpuWeight, Placement, Workspace
from step3.kernels.linear import Weight, stored_weight
from step3.kernels.rotary import inverse_frequencies


def attention_shape(network: Network, kv_dtype: torch.dtype, block_size: int) -> AttentionShape:
    """What the kernels need to know of the network."""
    sizes = network.sizes
    return AttentionShape(
        hidden=sizes.hidden_size,
        share_q=sizes.share_q_dim,
        heads=sizes.num_attention_heads,
        head_dim=sizes.head_dim,
        eps=network.rms_norm_eps,
        kv_dtype=kv_dtype,
        block_size=block_size,
        experts=sizes.moe_num_experts,
        top_k=sizes.moe_top_k,
        renormalise=network.norm_expert_weight,
    )


@dataclass(frozen=True, eq=False)
class PackedDecoderWeights:
    """What an attention instance holds, packed; see `DecoderWeights`."""

    embedding: Tensor
    layers: tuple[PackedAttention, ...]
    norm: Tensor
    head: CpuWeight

    @classmethod
    def load(cls, checkpoint: Checkpoint, placement: Placement) -> PackedDecoderWeights:
        """Takes layer by layer, straight from the mapped files where their data is aligned.

        Raises:
            CheckpointError: the weights are to stay in place but cannot be mapped, or are of another dtype.
        """
        embedding = _embedding(checkpoint, placement.in_place)["model.embed_tokens.weight"]
        ends, mapped = checkpoint.matrices(Part(frozenset({Kind.LM_HEAD})), placement.in_place)
        head = placement.take((ends["lm_head.weight"],), mapped=mapped)
        layers = []
        norm = None
        for layer in range(checkpoint.config.text.num_hidden_layers):
            layers_part = range(layer, layer + 1)
            matrices, mapped = checkpoint.matrices(
                Part(frozenset({Kind.ATTENTION}), layers_part), placement.in_place
            )
            small = checkpoint.load(Part(frozenset({Kind.ROUTER, Kind.NORM}), layers_part))
            norm = small["model.norm.weight"]
            layers.append(_layer(placement, matrices, small, f"model.layers.{layer}.", mapped))
        assert norm is not None, "a decoder has layers"
        return cls(embedding, tuple(layers), norm.float(), head)

    @property
    def nbytes(self) -> int:
        """Memory of the weights."""
        ends = self.embedding.nbytes + self.norm.nbytes + self.head.nbytes
        return ends + sum(layer.nbytes for layer in self.layers)


def _embedding(checkpoint: Checkpoint, in_place: bool) -> dict[str, Tensor]:
    part = Part(frozenset({Kind.EMBEDDING}))
    if in_place:
        return checkpoint.matrices(part, in_place=True)[0]
    return checkpoint.load(part, dtype=torch.bfloat16)


def _layer(
    placement: Placement, matrices: dict[str, Tensor], small: dict[str, Tensor], at: str, mapped: bool
) -> PackedAttention:
    def weight(projection: str) -> Weight:
        return stored_weight(matrices, f"{at}self_attn.{projection}.weight")

    return PackedAttention(
        placement,
        (weight("q_proj"), weight("k_proj"), weight("v_proj")),
        weight("wq"),
        weight("o_proj"),
        (
            small[f"{at}input_layernorm.weight"],
            small[f"{at}self_attn.inter_norm.weight"],
            small[f"{at}post_attention_layernorm.weight"],
        ),
        small.get(f"{at}moe.gate.weight"),
        mapped=mapped,
    )


class PackedDecoder:
    """`Decoder` on the CPU kernels."""

    def __init__(
        self,
        network: Network,
        weights: PackedDecoderWeights,
        store: KVStore,
        shape: AttentionShape,
        ffns: Sequence[PackedFFN] | None = None,
    ) -> None:
        """
        Args:
            ffns: of all layers, if they are here: then no FFN is asked for.
        """
        self._weights = weights
        self._library = weights.head.library
        self._layers = PackedLayers(shape, Workspace(self._library))
        self._pages = [store.layer(index) for index in range(len(weights.layers))]
        angles = inverse_frequencies(
            shape.head_dim, network.rope_theta, network.rope_scaling, torch.device("cpu")
        )
        self._beginning = Beginning(self._library, weights.embedding, *angles)
        self._whole = None
        if ffns is not None:
            workspace = self._layers.workspace
            self._whole = WholeDecoder(shape, workspace, weights.layers, ffns, self._pages, weights.norm)

    def decode(self, batch: Batch) -> Generator[FFNCall, Tensor, Tensor]:
        """Runs a batch through all layers; as `Decoder.decode`."""
        hidden, cos, sin = self._beginning.of(batch.tokens, batch.positions)
        for rows, features in batch.features:
            hidden.index_copy_(0, rows, features.float())
        step = PackedStep(batch.slots, cos, sin, batch.paging)
        if self._whole is not None:
            return self._whole.forward(step, hidden)
        answer: Tensor | None = None
        for index, layer in enumerate(self._weights.layers):
            keys, values = self._pages[index]
            call = FFNCall(index, *self._layers.attend(layer, step, keys, values, hidden, answer))
            answer = (yield call).to(torch.bfloat16).contiguous()
        assert answer is not None, "a decoder has layers"
        return final_norm(self._library, hidden, answer, self._weights.norm, self._layers.shape.eps)

    def logits(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """As `Decoder.logits`."""
        return packed_linear(hidden, self._weights.head, self._layers.workspace, rows)

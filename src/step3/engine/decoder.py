"""The decoder as the engine runs it: fused weights, paged keys and values, FFNs answered from outside."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from step3.checkpoint import Checkpoint, Part
from step3.checkpoint.layout import Kind
from step3.engine.batch import Batch
from step3.engine.kv_store import KVStore
from step3.engine.network import Network
from step3.ffn.call import FFNCall
from step3.kernels import attention
from step3.kernels.linear import BlockFp8, Weight, fuse, linear, stacked_linear
from step3.kernels.norm import rms_norm
from step3.kernels.rotary import cos_sin, inverse_frequencies, rotate
from step3.kernels.routing import route


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """What the attention side holds of a layer.

    Attributes:
        qkv: q_proj, k_proj and v_proj, `[share_q_dim + 2 * head_dim, hidden]` in one or more matrices.
        router: `[experts, hidden]` float32, or None in a layer without experts.
    """

    input_norm: Tensor
    qkv: tuple[Weight, ...]
    inter_norm: Tensor
    wq: Weight
    o_proj: Weight
    ffn_norm: Tensor
    router: Tensor | None

    @property
    def nbytes(self) -> int:
        weights = (self.input_norm, *self.qkv, self.inter_norm, self.wq, self.o_proj, self.ffn_norm)
        return sum(weight.nbytes for weight in weights) + (0 if self.router is None else self.router.nbytes)


@dataclass(frozen=True, eq=False)
class DecoderWeights:
    """What an attention instance holds: everything but FFNs and the vision side."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Tensor

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> DecoderWeights:
        """Reads layer by layer; plain weights become `dtype`, block-fp8 stays as it is stored."""
        outer = frozenset({Kind.EMBEDDING, Kind.LM_HEAD})
        ends = checkpoint.load(Part(outer), dtype=dtype, device=device)
        layers = []
        for layer in range(checkpoint.config.text.num_hidden_layers):
            kinds = frozenset({Kind.ATTENTION, Kind.ROUTER, Kind.NORM})
            tensors = checkpoint.load(Part(kinds, range(layer, layer + 1)), dtype=dtype, device=device)
            ends["model.norm.weight"] = tensors["model.norm.weight"]
            layers.append(_layer(tensors, f"model.layers.{layer}."))
        return cls(
            ends["model.embed_tokens.weight"],
            tuple(layers),
            ends["model.norm.weight"],
            ends["lm_head.weight"],
        )

    @property
    def nbytes(self) -> int:
        """Memory of the weights."""
        ends = self.embedding.nbytes + self.norm.nbytes + self.head.nbytes
        return ends + sum(layer.nbytes for layer in self.layers)


def _layer(tensors: dict[str, Tensor], at: str) -> LayerWeights:
    def weight(projection: str) -> Weight:
        name = f"{at}self_attn.{projection}.weight"
        scale = tensors.get(f"{name}_scale_inv")
        return tensors[name] if scale is None else BlockFp8(tensors[name], scale)

    router = tensors.get(f"{at}moe.gate.weight")
    return LayerWeights(
        input_norm=tensors[f"{at}input_layernorm.weight"],
        qkv=fuse((weight("q_proj"), weight("k_proj"), weight("v_proj"))),
        inter_norm=tensors[f"{at}self_attn.inter_norm.weight"],
        wq=weight("wq"),
        o_proj=weight("o_proj"),
        ffn_norm=tensors[f"{at}post_attention_layernorm.weight"],
        # A rounding in the router would choose another expert: it is multiplied in float32.
        router=None if router is None else router.float(),
    )


class Decoder:
    """Embedding, attention layers, router, final norm and head."""

    def __init__(self, network: Network, weights: DecoderWeights, store: KVStore) -> None:
        self._network, self._weights, self._store = network, weights, store
        sizes = network.sizes
        self._qkv_sizes = (sizes.share_q_dim, sizes.head_dim, sizes.head_dim)
        self._scale = sizes.head_dim**-0.5
        self._frequencies, self._attention_factor = inverse_frequencies(
            sizes.head_dim, network.rope_theta, network.rope_scaling, weights.embedding.device
        )

    def decode(self, batch: Batch) -> Generator[FFNCall, Tensor, Tensor]:
        """Runs a batch through all layers.

        Yields each layer's FFN and is resumed with its output `[tokens, hidden]`. Who drives it decides
        where FFNs are computed, and what is computed meanwhile.

        Returns:
            The hidden states after the final norm, `[tokens, hidden]`.
        """
        eps = self._network.rms_norm_eps
        hidden = self._embed(batch)
        angles = cos_sin(batch.positions, self._frequencies, self._attention_factor)
        heads, device = self._network.sizes.num_attention_heads, hidden.device
        plan = attention.prepare(batch.paging, self._store.block_size, heads, device)
        for index, layer in enumerate(self._weights.layers):
            hidden = hidden + self._attention(index, layer, hidden, batch.slots, plan, angles)
            normed = rms_norm(hidden, layer.ffn_norm, eps)
            hidden = hidden + (yield self._ffn_call(index, layer, normed))
        return rms_norm(hidden, self._weights.norm, eps)

    def logits(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Of hidden states `[tokens, hidden]` after the final norm, all of them or those of `rows` (int64).

        Returns:
            `[rows, vocabulary]` float32.
        """
        chosen = hidden if rows is None else hidden.index_select(0, rows)
        return linear(chosen, self._weights.head).float()

    def _embed(self, batch: Batch) -> Tensor:
        hidden = F.embedding(batch.tokens, self._weights.embedding)
        for rows, features in batch.features:
            hidden.index_copy_(0, rows, features)
        return hidden

    def _attention(
        self,
        index: int,
        layer: LayerWeights,
        hidden: Tensor,
        slots: Tensor,
        plan: attention.AttentionPlan,
        angles: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Multi-matrix factorization attention (paper section 3.1)."""
        sizes, eps = self._network.sizes, self._network.rms_norm_eps
        normed = rms_norm(hidden, layer.input_norm, eps)
        query, key, value = stacked_linear(normed, layer.qkv).split(self._qkv_sizes, -1)
        query = linear(rms_norm(query, layer.inter_norm, eps), layer.wq)
        query = query.view(-1, sizes.num_attention_heads, sizes.head_dim)
        cos, sin = angles
        query, key = rotate(query, cos[:, None], sin[:, None]), rotate(key, cos, sin)
        keys, values = self._store.layer(index)
        attention.write(keys, values, slots, key, value)
        mixed = attention.attend(query, keys, values, plan, self._scale)
        return linear(mixed.flatten(1), layer.o_proj)

    def _ffn_call(self, index: int, layer: LayerWeights, normed: Tensor) -> FFNCall:
        if layer.router is None:
            return FFNCall(index, normed)
        logits = linear(normed.float(), layer.router)
        sizes = self._network.sizes
        ids, weights = route(logits, sizes.moe_top_k, self._network.norm_expert_weight)
        return FFNCall(index, normed, ids, weights)

"""The decoder as the engine runs it: fused weights, paged keys and values, FFNs answered from outside."""

from __future__ import annotations

from array import array
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from step3.checkpoint import Checkpoint, Part
from step3.checkpoint.layout import Kind
from step3.engine.batch import Batch
from step3.engine.decoding import Decoded
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
    """`StepDecoder` with torch."""

    def __init__(self, network: Network, weights: DecoderWeights, store: KVStore) -> None:
        self._network, self._weights, self._store = network, weights, store
        sizes = network.sizes
        self._qkv_sizes = (sizes.share_q_dim, sizes.head_dim, sizes.head_dim)
        self._scale = sizes.head_dim**-0.5
        self._frequencies, self._attention_factor = inverse_frequencies(
            sizes.head_dim, network.rope_theta, network.rope_scaling, weights.embedding.device
        )

    def decode(
        self, batch: Batch, *, is_greedy: bool = False, keeps_hidden: bool = False
    ) -> Generator[FFNCall, Tensor, Decoded]:
        """As `StepDecoder.decode`; always tells the logits."""
        del is_greedy
        eps, paging = self._network.rms_norm_eps, batch.paging
        hidden = self._embed(batch)
        positions, slots = (
            self._tensor(paging.positions()),
            self._tensor(paging.slots(self._store.block_size)),
        )
        angles = cos_sin(positions, self._frequencies, self._attention_factor)
        heads, device = self._network.sizes.num_attention_heads, hidden.device
        plan = attention.prepare(paging, self._store.block_size, heads, device)
        for index, layer in enumerate(self._weights.layers):
            hidden = hidden + self._attention(index, layer, hidden, slots, plan, angles)
            normed = rms_norm(hidden, layer.ffn_norm, eps)
            hidden = hidden + (yield self._ffn_call(index, layer, normed))
        hidden = rms_norm(hidden, self._weights.norm, eps)
        logits = None
        if batch.scored:
            is_all = len(batch.scored) == len(hidden)
            logits = self.logits(hidden if is_all else hidden.index_select(0, self._tensor(batch.scored)))
        return Decoded(logits, hidden=hidden if keeps_hidden else None)

    def logits(self, hidden: Tensor) -> Tensor:
        """As `StepDecoder.logits`."""
        return linear(hidden, self._weights.head).float()

    def _embed(self, batch: Batch) -> Tensor:
        hidden = F.embedding(self._tensor(batch.tokens), self._weights.embedding)
        for rows, features in batch.features:
            hidden.index_copy_(0, self._tensor(rows), features)
        return hidden

    def _tensor(self, numbers: array[int] | np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(numbers)).to(self._weights.embedding.device)

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

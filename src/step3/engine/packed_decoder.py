"""The decoder on the CPU kernels: packed weights, a step in one call, or a layer's attention side.

The hidden states stay in float32 between the layers; what is multiplied is bfloat16.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from step3.checkpoint import Checkpoint, Part
from step3.checkpoint.layout import Kind
from step3.engine.batch import Batch
from step3.engine.decoding import Decoded
from step3.engine.kv_store import KVStore
from step3.engine.network import Network
from step3.ffn.call import FFNCall
from step3.kernels.cpu.attention import AttentionShape, PackedAttention, PackedStep, packed_linear
from step3.kernels.cpu.decoder import PackedNetwork
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
    """`StepDecoder` on the CPU kernels."""

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
        self._head, self._workspace = weights.head, Workspace(weights.head.library)
        self._holds_ffns = ffns is not None
        angles = inverse_frequencies(
            shape.head_dim, network.rope_theta, network.rope_scaling, torch.device("cpu")
        )
        self._num_layers = len(weights.layers)
        self._network = PackedNetwork(
            shape,
            self._workspace,
            weights.layers,
            ffns,
            [store.layer(index) for index in range(self._num_layers)],
            embedding=weights.embedding,
            angles=angles,
            norm=weights.norm,
            head=weights.head,
        )

    def decode(
        self, batch: Batch, *, is_greedy: bool = False, keeps_hidden: bool = False
    ) -> Generator[FFNCall, Tensor, Decoded]:
        """As `StepDecoder.decode`."""
        step = PackedStep(batch.tokens, batch.paging, batch.scored, batch.features)
        logits = hidden = tokens = None
        if is_greedy:
            tokens = array("q", bytes(8 * step.num_scored))
        elif step.num_scored:
            logits = torch.empty(step.num_scored, self._head.matrix.rows)
        if keeps_hidden:
            hidden = torch.empty(step.tokens, self._network.shape.hidden, dtype=torch.bfloat16)
        if self._holds_ffns:
            self._network.run(step, hidden, logits, tokens)
        else:
            self._network.begin(step)
            answer: Tensor | None = None
            for index in range(self._num_layers):
                call = FFNCall(index, *self._network.attend(index, step, answer))
                answer = (yield call).to(torch.bfloat16).contiguous()
            assert answer is not None, "a decoder has layers"
            self._network.end(step, answer, hidden, logits, tokens)
        return Decoded(logits, None if tokens is None else tokens.tolist(), hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """As `StepDecoder.logits`."""
        return packed_linear(hidden, self._head, self._workspace)

"""Every tensor that a config implies: its official name, its shape, what it is for, how it is quantised.

The one place that knows the published layout (names and shapes of the checkpoint at
`stepfun-ai/step3`, and of its block-fp8 twin); reading, checking, inspecting and quantising follow it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from step3.checkpoint.config import BLOCK, CheckpointConfig, TextSizes, VisionSizes

SCALE_SUFFIX = "_scale_inv"


class Kind(Enum):
    """What a tensor is for; the value is the name that people read."""

    EMBEDDING = "embedding"
    ATTENTION = "attention"
    ROUTER = "router"
    DENSE_FFN = "dense FFN"
    EXPERTS = "experts"
    SHARED_EXPERT = "shared experts"
    NORM = "norms"
    LM_HEAD = "lm_head"
    VISION_TOWER = "vision tower"
    PROJECTOR = "projector"


class Cut(Enum):
    """Which dimension of an FFN weight runs over the intermediate size, along which shards are cut."""

    ROWS = -2
    """`gate_proj` and `up_proj`, `[..., intermediate, hidden]`."""
    COLUMNS = -1
    """`down_proj`, `[..., hidden, intermediate]`."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor as the layout wants it."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    layer: int | None = None
    """The decoder layer, or None outside the decoder's layers."""
    cut: Cut | None = None
    linear: bool = False
    """Block-fp8 checkpoints quantise it, if it is not among the modules that they keep."""
    quantised: bool = False
    """Stored as float8_e4m3fn with a scale beside it."""

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def scale_name(self) -> str:
        return self.name + SCALE_SUFFIX

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """One value a block of 128 x 128, sizes rounded up; experts keep their leading dimension."""
        *lead, rows, columns = self.shape
        return (*lead, -(-rows // BLOCK), -(-columns // BLOCK))


def layout(config: CheckpointConfig) -> dict[str, TensorSpec]:
    """The tensors that `config` implies, by official name, in the order of the forward pass."""
    kept = config.quantisation.kept if config.quantisation else ()
    table = {}
    for spec in _tensors(config):
        quantised = spec.linear and not any(module in spec.name for module in kept)
        table[spec.name] = replace(spec, quantised=quantised and config.quantisation is not None)
    return table


def official_name(name: str) -> str:
    """`name` in the published layout, if it is written as in Transformers' module tree; else as it is.

    The model card's `key_mapping` maps `model.X` to `model.language_model.X`, `vision_model.X` to
    `model.vision_model.X` and `vit_X` to `model.vit_X`; fine-tuned checkpoints are met in both forms.
    """
    for prefix, official in (
        ("model.language_model.", "model."),
        ("model.vision_model.", "vision_model."),
        ("model.vit_", "vit_"),
    ):
        if name.startswith(prefix):
            return official + name.removeprefix(prefix)
    return name


def _tensors(config: CheckpointConfig) -> Iterator[TensorSpec]:
    text = config.text
    rows = (text.vocab_size, text.hidden_size)
    yield TensorSpec("model.embed_tokens.weight", rows, Kind.EMBEDDING)
    for layer in range(text.num_hidden_layers):
        yield from _layer(text, layer)
    yield TensorSpec("model.norm.weight", (text.hidden_size,), Kind.NORM)
    yield TensorSpec("lm_head.weight", rows, Kind.LM_HEAD)
    if config.vision:
        yield from _vision_tower(config.vision)
        yield from _projector(config.vision, text.hidden_size)


def _layer(text: TextSizes, layer: int) -> Iterator[TensorSpec]:
    at = f"model.layers.{layer}"
    hidden, heads = text.hidden_size, text.num_attention_heads * text.head_dim

    def norm(name: str, size: int) -> TensorSpec:
        return TensorSpec(f"{at}.{name}.weight", (size,), Kind.NORM, layer)

    def attention(name: str, rows: int, columns: int) -> TensorSpec:
        shape = (rows, columns)
        return TensorSpec(f"{at}.self_attn.{name}.weight", shape, Kind.ATTENTION, layer, linear=True)

    def ffn(name: str, kind: Kind, size: int, lead: tuple[int, ...] = ()) -> Iterator[TensorSpec]:
        for part, cut in (("gate_proj", Cut.ROWS), ("up_proj", Cut.ROWS), ("down_proj", Cut.COLUMNS)):
            shape = (*lead, size, hidden) if cut is Cut.ROWS else (*lead, hidden, size)
            yield TensorSpec(f"{at}.{name}.{part}.weight", shape, kind, layer, cut, linear=True)

    yield norm("input_layernorm", hidden)
    yield attention("q_proj", text.share_q_dim, hidden)
    yield attention("k_proj", text.head_dim, hidden)
    yield attention("v_proj", text.head_dim, hidden)
    yield norm("self_attn.inter_norm", text.share_q_dim)
    yield attention("wq", heads, text.share_q_dim)
    yield attention("o_proj", hidden, heads)
    yield norm("post_attention_layernorm", hidden)
    if layer in text.moe_layers:
        experts = text.moe_num_experts
        yield TensorSpec(f"{at}.moe.gate.weight", (experts, hidden), Kind.ROUTER, layer)
        yield from ffn("moe", Kind.EXPERTS, text.moe_intermediate_size, (experts,))
        yield from ffn("share_expert", Kind.SHARED_EXPERT, text.share_expert_dim)
    else:
        yield from ffn("mlp", Kind.DENSE_FFN, text.intermediate_size)


def _with_bias(name: str, shape: tuple[int, ...], kind: Kind) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", shape, kind)
    yield TensorSpec(f"{name}.bias", shape[:1], kind)


def _vision_tower(vision: VisionSizes) -> Iterator[TensorSpec]:
    kind, hidden, patch = Kind.VISION_TOWER, vision.hidden_size, vision.patch_size
    at = "vision_model.embeddings"
    positions = (vision.image_size // patch) ** 2 + 1
    yield TensorSpec(f"{at}.class_embedding", (1, hidden), kind)
    yield from _with_bias(f"{at}.patch_embedding", (hidden, vision.num_channels, patch, patch), kind)
    yield TensorSpec(f"{at}.position_embedding.weight", (positions, hidden), kind)
    for layer in range(vision.num_hidden_layers):
        at = f"vision_model.transformer.layers.{layer}"
        yield from _with_bias(f"{at}.self_attn.qkv_proj", (3 * hidden, hidden), kind)
        yield from _with_bias(f"{at}.self_attn.out_proj", (hidden, hidden), kind)
        yield from _with_bias(f"{at}.layer_norm1", (hidden,), kind)
        yield from _with_bias(f"{at}.layer_norm2", (hidden,), kind)
        yield from _with_bias(f"{at}.mlp.fc1", (vision.intermediate_size, hidden), kind)
        yield from _with_bias(f"{at}.mlp.fc2", (hidden, vision.intermediate_size), kind)


def _projector(vision: VisionSizes, text_hidden: int) -> Iterator[TensorSpec]:
    kind, inner = Kind.PROJECTOR, vision.output_hidden_size
    yield from _with_bias("vit_downsampler", (inner, vision.hidden_size, 2, 2), kind)
    yield from _with_bias("vit_downsampler2", (2 * inner, inner, 3, 3), kind)
    yield TensorSpec("vit_large_projector.weight", (text_hidden, 2 * inner), kind)
    if vision.projector_bias:
        yield TensorSpec("vit_large_projector.bias", (text_hidden,), kind)

"""The configurations of Step3: text decoder, vision tower, and the two together.

Field names are those of the published `config.json`. Anything else that a `config.json` holds is kept and
written back unchanged, but for what names code to import: that is never followed, so it is dropped.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.configuration_utils import PretrainedConfig

from step3.auto_classes import register_networks
from step3.errors import Step3Error

# No decoder is this deep and no matrix this wide: a config.json that says so is broken or hostile.
MOST_LAYERS = 4096
LARGEST_SIZE = 1 << 31

_CODE_REFERENCES = ("auto_map", "custom_pipelines")

# Published files say `torch_dtype`; Transformers 5 says `dtype` and warns of whoever reads the other name.
_NAMES = (
    {"torch_dtype": "dtype"} if isinstance(getattr(PretrainedConfig, "torch_dtype", None), property) else {}
)


class Step3Config(PretrainedConfig):
    """What the three configurations share: how they are read from `config.json` and written back."""

    attribute_map = _NAMES

    def __init__(self, **kwargs: Any) -> None:
        for field in _CODE_REFERENCES:
            kwargs.pop(field, None)
        super().__init__(**kwargs)
        register_networks()

    def to_dict(self) -> dict[str, Any]:
        return _published_fields(super().to_dict())

    def to_diff_dict(self) -> dict[str, Any]:
        """What `save_pretrained` writes: the parts as they would be written alone, in either Transformers."""
        fields = super().to_diff_dict()
        for part in self.sub_configs:
            fields[part] = getattr(self, part).to_diff_dict()
            fields[part].pop("transformers_version", None)
        return _published_fields(fields)


class Step3VisionConfig(Step3Config):
    """Sizes of the vision tower: a post-norm ViT and the two convolutions behind it.

    Args:
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads: the ViT.
        output_hidden_size: channels of the first convolution; the second has twice as many.
        image_size, patch_size: pixels; `(image_size / patch_size) ** 2 + 1` position rows are stored.
    """

    model_type = "step3_vision_encoder"
    base_config_key = "vision_config"

    def __init__(
        self,
        hidden_size: int = 1792,
        intermediate_size: int = 15360,
        output_hidden_size: int = 4096,
        num_hidden_layers: int = 63,
        num_attention_heads: int = 16,
        num_channels: int = 3,
        image_size: int = 728,
        patch_size: int = 14,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.output_hidden_size = output_hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_channels = num_channels
        self.image_size = image_size
        self.patch_size = patch_size
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        super().__init__(**kwargs)
        _need_sizes(
            self,
            "hidden_size",
            "intermediate_size",
            "output_hidden_size",
            "num_attention_heads",
            "num_channels",
            "image_size",
            "patch_size",
        )
        _need_layers(self)
        _need_positive(self, "layer_norm_eps")
        _need_divisible(self, "hidden_size", "num_attention_heads")
        _need_divisible(self, "image_size", "patch_size")


class Step3TextConfig(Step3Config):
    """Sizes of the decoder: MFA attention, dense and mixture-of-experts FFNs.

    Args:
        share_q_dim: width of the low-rank query before `wq` (MFA).
        num_attention_groups: key/value heads; Step3 has one, shared by all query heads.
        moe_layers_enum: the layers with experts, as "4,5,6" or a list of numbers; all but the first
            where it is None.
        share_expert_dim: intermediate size of the expert that every token uses.
        norm_expert_weight: whether the chosen experts' weights are scaled to sum to one.
        output_router_logits: return the router's logits, and add the load-balancing loss to the loss.
        quantization_config: block-fp8 as published (`quant_method` "fp8", `weight_block_size`), or None.
        dequantise: turn block-fp8 weights into the model's dtype once loaded, for fine-tuning.
    """

    model_type = "step3_text"
    base_config_key = "text_config"
    keys_to_ignore_at_inference = ("past_key_values", "cache")
    attribute_map = {  # noqa: RUF012 (Transformers reads it as a plain dict)
        "num_key_value_heads": "num_attention_groups",
        "max_position_embeddings": "max_position_embedding",
    }
    # A plain attribute: Transformers 5 would rename the published field on the way through.
    rope_scaling: Mapping[str, Any] | None = None

    def __init__(
        self,
        hidden_size: int = 7168,
        intermediate_size: int = 18432,
        num_attention_heads: int = 64,
        num_attention_groups: int = 1,
        num_hidden_layers: int = 61,
        max_seq_len: int = 65536,
        vocab_size: int = 128815,
        rms_norm_eps: float = 1e-5,
        moe_intermediate_size: int = 5120,
        moe_num_experts: int = 48,
        moe_top_k: int = 3,
        rope_theta: float = 500000,
        rope_scaling: Mapping[str, Any] | None = None,
        max_position_embedding: int = 65536,
        share_expert_dim: int = 5120,
        share_q_dim: int = 2048,
        head_dim: int = 256,
        norm_expert_weight: bool = False,
        moe_layers_enum: str | Sequence[int] | None = None,
        hidden_act: str = "silu",
        initializer_range: float = 0.02,
        use_cache: bool = True,
        output_router_logits: bool = False,
        router_aux_loss_coef: float = 0.001,
        quantization_config: Mapping[str, Any] | None = None,
        dequantise: bool = False,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_attention_heads = num_attention_heads
        self.num_attention_groups = num_attention_groups
        self.num_hidden_layers = num_hidden_layers
        self.max_seq_len = max_seq_len
        self.vocab_size = vocab_size
        self.rms_norm_eps = rms_norm_eps
        self.moe_intermediate_size = moe_intermediate_size
        self.moe_num_experts = moe_num_experts
        self.moe_top_k = moe_top_k
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        self.max_position_embedding = max_position_embedding
        self.share_expert_dim = share_expert_dim
        self.share_q_dim = share_q_dim
        self.head_dim = head_dim
        self.norm_expert_weight = norm_expert_weight
        self.moe_layers_enum = moe_layers_enum
        self.hidden_act = hidden_act
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        self.output_router_logits = output_router_logits
        self.router_aux_loss_coef = router_aux_loss_coef
        self.dequantise = dequantise
        self.block_fp8 = quantization_config
        self._read_rope_parameters(kwargs.pop("rope_parameters", None))
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
        self._check()

    def _read_rope_parameters(self, parameters: Mapping[str, Any] | None) -> None:
        """Takes what Transformers 5 writes in place of `rope_theta` and `rope_scaling`."""
        if not parameters:
            return
        scaling = {name: value for name, value in parameters.items() if name != "rope_theta"}
        self.rope_theta = parameters.get("rope_theta", self.rope_theta)
        if scaling.get("rope_type", "default") != "default":
            self.rope_scaling = scaling

    def _check(self) -> None:
        _need_sizes(
            self,
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_attention_groups",
            "vocab_size",
            "share_q_dim",
            "head_dim",
        )
        _need_layers(self)
        _need_positive(self, "rms_norm_eps", "rope_theta")
        _need_divisible(self, "num_attention_heads", "num_attention_groups")
        _need_divisible(self, "head_dim", 2)
        if self.moe_layers:
            _need_sizes(self, "moe_intermediate_size", "moe_num_experts", "moe_top_k", "share_expert_dim")
            if self.moe_top_k > self.moe_num_experts:
                raise Step3Error(
                    f"config: moe_top_k must be at most moe_num_experts = {self.moe_num_experts}, "
                    f"found {self.moe_top_k}"
                )
        if self.hidden_act != "silu":
            raise Step3Error(f"config: hidden_act must be 'silu', found {self.hidden_act!r}")
        if self.rope_scaling is not None and not isinstance(self.rope_scaling, Mapping):
            raise Step3Error(f"config: rope_scaling must be an object or null, found {self.rope_scaling!r}")
        _need_untied(self)
        _check_block_fp8(self.block_fp8)

    @property
    def moe_layers(self) -> frozenset[int]:
        """Indices of the layers whose FFN is a mixture of experts."""
        listed: str | Sequence[int | str] | None = self.moe_layers_enum
        if listed is None:
            return frozenset(range(1, self.num_hidden_layers))
        if isinstance(listed, str):
            listed = [part for part in listed.split(",") if part.strip()]
        try:
            layers = frozenset(int(layer) for layer in listed)
        except (TypeError, ValueError):
            raise Step3Error(
                "config: moe_layers_enum must list layer numbers, as in '4,5,6', "
                f"found {self.moe_layers_enum!r}"
            ) from None
        outside = [layer for layer in layers if not 0 <= layer < self.num_hidden_layers]
        if outside:
            raise Step3Error(
                f"config: moe_layers_enum names layer {max(outside)}, "
                f"but there are {self.num_hidden_layers} layers (0 to {self.num_hidden_layers - 1})"
            )
        return layers

    @property
    def weight_block_size(self) -> tuple[int, int] | None:
        """Rows and columns of a block-fp8 block, or None for weights that are not quantised."""
        return tuple(self.block_fp8["weight_block_size"]) if self.block_fp8 else None

    @property
    def unquantised_names(self) -> tuple[str, ...]:
        """Parts of the names of tensors that a block-fp8 checkpoint leaves as they are."""
        return _unquantised(self.block_fp8 or {})


class Step3VLConfig(Step3Config):
    """Step3 with its eyes: `text_config`, `vision_config`, and what joins them.

    Args:
        understand_projector_stride: stride of the first convolution behind the tower.
        projector_bias: whether `vit_large_projector` has a bias.
        image_token_id: the token whose places the features fill (`<im_patch>`).
        image_token_len, patch_token_len: features of a whole picture and of a crop.
    """

    model_type = "step3_vl"
    sub_configs = {"vision_config": Step3VisionConfig, "text_config": Step3TextConfig}  # noqa: RUF012
    keys_to_ignore_at_inference = ("past_key_values", "cache")

    def __init__(
        self,
        vision_config: Mapping[str, Any] | Step3VisionConfig | None = None,
        text_config: Mapping[str, Any] | Step3TextConfig | None = None,
        understand_projector_stride: int = 2,
        projector_bias: bool = False,
        image_token_id: int = 128001,
        image_token_len: int = 169,
        patch_token_len: int = 81,
        quantization_config: Mapping[str, Any] | None = None,
        dequantise: bool = False,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vision_config = _as_config(Step3VisionConfig, vision_config, "vision_config")
        self.text_config = _as_config(Step3TextConfig, text_config, "text_config")
        if quantization_config is not None:
            _check_block_fp8(quantization_config)
            self.text_config.block_fp8 = quantization_config
        self.dequantise = dequantise or self.text_config.dequantise
        self.understand_projector_stride = understand_projector_stride
        self.projector_bias = projector_bias
        self.image_token_id = image_token_id
        self.image_token_len = image_token_len
        self.patch_token_len = patch_token_len
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
        _need_sizes(self, "understand_projector_stride", "image_token_len", "patch_token_len")
        if type(image_token_id) is not int or not 0 <= image_token_id < self.text_config.vocab_size:
            raise Step3Error(
                f"config: image_token_id must be a token below vocab_size = {self.text_config.vocab_size}, "
                f"found {image_token_id!r}"
            )
        _need_untied(self)


def _published_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Names the fields as the published `config.json` does, and leaves out how a model was loaded.

    Block-fp8 is kept elsewhere in memory because Transformers takes any config with a `quantization_config`
    for its own fp8 scheme, which needs a GPU and knows no expert tensors. Transformers 5 says `dtype`, which
    4.54 and other engines do not read.
    """
    fields.pop("dequantise", None)
    for part in ("text_config", "vision_config"):
        if isinstance(fields.get(part), dict):
            fields[part] = _published_fields(fields[part])
    if fields.get("dtype") is not None:
        fields["torch_dtype"] = fields.pop("dtype")
    block_fp8 = fields.pop("block_fp8", None)
    if block_fp8:
        fields["quantization_config"] = dict(block_fp8)
    quantised_text = fields.get("text_config", {}).pop("quantization_config", None)
    if quantised_text:
        fields["quantization_config"] = quantised_text
    return fields


def _as_config(kind: type[PretrainedConfig], given: Any, field: str) -> PretrainedConfig:
    if given is None:
        return kind()
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        raise Step3Error(f"config: {field} must be an object, found {type(given).__name__}")
    return kind(**given)


def _need_sizes(config: PretrainedConfig, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        if type(value) is not int or not 1 <= value <= LARGEST_SIZE:
            raise Step3Error(f"config: {field} must be a positive whole number, found {value!r}")


def _need_layers(config: PretrainedConfig) -> None:
    value = config.num_hidden_layers
    if type(value) is not int or not 1 <= value <= MOST_LAYERS:
        raise Step3Error(
            f"config: num_hidden_layers must be a whole number from 1 to {MOST_LAYERS}, found {value!r}"
        )


def _need_positive(config: PretrainedConfig, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise Step3Error(f"config: {field} must be a positive number, found {value!r}")


def _need_divisible(config: PretrainedConfig, whole: str, part: str | int) -> None:
    divisor = getattr(config, part) if isinstance(part, str) else part
    if getattr(config, whole) % divisor:
        named = f"{part} = {divisor}" if isinstance(part, str) else str(divisor)
        raise Step3Error(f"config: {whole} must be a multiple of {named}, found {getattr(config, whole)}")


def _need_untied(config: PretrainedConfig) -> None:
    if config.tie_word_embeddings:
        raise Step3Error("config: tie_word_embeddings must be false: Step3 has an lm_head of its own")


def _check_block_fp8(quantization: Mapping[str, Any] | None) -> None:
    if quantization is None:
        return
    if not isinstance(quantization, Mapping):
        raise Step3Error(f"config: quantization_config must be an object, found {quantization!r}")
    method = quantization.get("quant_method")
    if method != "fp8":
        raise Step3Error(f"config: quantization_config.quant_method must be 'fp8', found {method!r}")
    block = quantization.get("weight_block_size")
    if not (isinstance(block, Sequence) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)):
        raise Step3Error(
            "config: quantization_config.weight_block_size must be two positive whole numbers, "
            f"as in [128, 128], found {block!r}"
        )
    _unquantised(quantization)


def _unquantised(quantization: Mapping[str, Any]) -> tuple[str, ...]:
    for field in ("modules_to_not_convert", "ignored_layers"):
        names = quantization.get(field)
        if names is None:
            continue
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
            raise Step3Error(
                f"config: quantization_config.{field} must be a list of module names, found {names!r}"
            )
        return tuple(names)
    return ()

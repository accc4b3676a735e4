"""What every Step3 network shares: how it is loaded, drawn and dequantised."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel

from step3.errors import Step3Error
from step3.model.configuration_step3 import Step3TextConfig
from step3.model.layers_step3 import Step3RMSNorm
from step3.model.linear import BlockFp8ExpertLinear, BlockFp8Linear, ExpertLinear, dequantise


class Step3PreTrainedModel(PreTrainedModel):
    """What Transformers needs to know of every Step3 module tree."""

    config_class: type[PretrainedConfig] = Step3TextConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Step3DecoderLayer", "Step3VisionLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _supports_cache_class = True
    # Transformers 4.54 gives a static cache only to networks that say so; see `_valid_auto_compile_criteria`.
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As Transformers', from safetensors alone: a pickle is never opened.

        Args:
            dequantise: turn block-fp8 weights into the model's dtype once loaded, for fine-tuning.

        Raises:
            Step3Error: block-fp8 weights without scales, or scales that config.json does not announce.
        """
        kwargs.setdefault("use_safetensors", True)
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        _check_scales(model.name_or_path, info)
        if getattr(model.config, "dequantise", False):
            model.dequantise()
        return (model, info) if output_loading_info else model

    def dequantise(self) -> None:
        """Turns block-fp8 weights, where there are any, into trainable ones in the model's dtype."""
        dequantise(self, self.dtype)
        self.config.get_text_config().block_fp8 = None

    def _init_weights(self, module: nn.Module) -> None:
        std = (
            getattr(self.config, "initializer_range", None) or self.config.get_text_config().initializer_range
        )
        if isinstance(module, BlockFp8Linear | BlockFp8ExpertLinear):
            fill(module.weight, 0.0)
            fill(module.weight_scale_inv, 1.0)
        elif isinstance(module, nn.Linear | nn.Conv2d | ExpertLinear):
            draw(module.weight, std)
            if getattr(module, "bias", None) is not None:
                fill(module.bias, 0.0)
        elif isinstance(module, nn.Embedding):
            draw(module.weight, std)
        elif isinstance(module, Step3RMSNorm | nn.LayerNorm):
            fill(module.weight, 1.0)
            if getattr(module, "bias", None) is not None:
                fill(module.bias, 0.0)


def _check_scales(name_or_path: str, loading_info: Mapping[str, Any]) -> None:
    """Transformers only warns of a missing or surplus tensor; without its scale a weight is noise."""
    missing = _scales(loading_info["missing_keys"])
    if missing:
        raise Step3Error(
            f"{name_or_path}: no {missing[0]} ({len(missing)} scales missing): by config.json the weights "
            "are block-fp8, so either a shard is missing or the quantization_config is wrong"
        )
    extra = _scales(loading_info["unexpected_keys"])
    if extra:
        raise Step3Error(
            f"{name_or_path}: unexpected {extra[0]} ({len(extra)} such scales): by config.json that weight "
            "is not quantised, so its quantization_config is missing or wrong"
        )


def _scales(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.endswith("weight_scale_inv"))


# Transformers marks what a checkpoint filled; such a tensor must not be drawn again.
@torch.no_grad()
def draw(parameter: Tensor, std: float) -> None:
    """Fills from a normal distribution what no checkpoint has filled."""
    if not getattr(parameter, "_is_hf_initialized", False):
        parameter.normal_(0.0, std)


@torch.no_grad()
def fill(parameter: Tensor, value: float) -> None:
    """Fills with one value what no checkpoint has filled."""
    if not getattr(parameter, "_is_hf_initialized", False):
        parameter.fill_(value)

"""Rotary position embedding of the "neox" kind: the two halves of a head are rotated against each other."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from step3.errors import Step3Error
from step3.kernels.precision import widen


def inverse_frequencies(
    head_dim: int, theta: float, scaling: Mapping[str, Any] | None = None, device: torch.device | None = None
) -> tuple[Tensor, float]:
    """Angles per position for each pair of channels, and the factor that scales cos and sin.

    Args:
        head_dim: channels of a head, even.
        theta: base of the geometric series (`rope_theta`).
        scaling: `rope_scaling` of a config: None, or a mapping with `rope_type` (or `type`) "default",
            "linear", "llama3" or "yarn" and that type's fields, named as Transformers names them.

    Returns:
        `[head_dim / 2]` float32, and the attention factor (1.0 but for yarn).

    Raises:
        Step3Error: the scaling is of a type that is not known, or a field is missing or no positive number.
    """
    channel = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    frequencies = 1.0 / theta ** (channel / head_dim)
    if scaling is None:
        return frequencies, 1.0
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequencies, 1.0
    if kind == "linear":
        return frequencies / _number(scaling, "factor"), 1.0
    if kind == "llama3":
        return _llama3(frequencies, scaling), 1.0
    if kind == "yarn":
        return _yarn(frequencies, head_dim, theta, scaling)
    raise Step3Error(f"rope_scaling type {kind!r} is not known: expected default, linear, llama3 or yarn")


def _number(scaling: Mapping[str, Any], field: str, default: float | None = None) -> float:
    value: Any = scaling.get(field)
    value = default if value is None else value
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise Step3Error(f"rope_scaling needs {field}, a positive number, found {value!r}")
    return value


def _llama3(frequencies: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    low, high = _number(scaling, "low_freq_factor"), _number(scaling, "high_freq_factor")
    if low >= high:
        raise Step3Error(f"rope_scaling needs low_freq_factor < high_freq_factor, found {low} and {high}")
    turns = _number(scaling, "original_max_position_embeddings") * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / _number(scaling, "factor"))


def _yarn(
    frequencies: Tensor, head_dim: int, theta: float, scaling: Mapping[str, Any]
) -> tuple[Tensor, float]:
    """YaRN (arXiv 2309.00071): interpolates slow channels, keeps fast ones, and sharpens attention."""
    factor = _number(scaling, "factor")
    context = _number(scaling, "original_max_position_embeddings")

    def channel_of(turns: float) -> float:
        return head_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    def sharpening(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    first = channel_of(_number(scaling, "beta_fast", default=32))
    last = channel_of(_number(scaling, "beta_slow", default=1))
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    ramp = torch.arange(head_dim // 2, dtype=torch.float32, device=frequencies.device)
    kept = 1 - ((ramp - first) / (last - first if last != first else 1e-3)).clamp(0, 1)
    if scaling.get("attention_factor") is not None:
        attention_factor = _number(scaling, "attention_factor")
    elif scaling.get("mscale") and scaling.get("mscale_all_dim"):
        over_all = sharpening(_number(scaling, "mscale_all_dim"))
        attention_factor = sharpening(_number(scaling, "mscale")) / over_all
    else:
        attention_factor = sharpening(1.0)
    return frequencies * (kept + (1 - kept) / factor), attention_factor


def cos_sin(positions: Tensor, frequencies: Tensor, attention_factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's angles.

    Args:
        positions: any shape, integers.
        frequencies: `[head_dim / 2]` float32.

    Returns:
        Two float32 tensors `[*positions.shape, head_dim / 2]`.
    """
    angles = positions[..., None].float() * frequencies
    return angles.cos() * attention_factor, angles.sin() * attention_factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the halves of the last dimension of `x` against each other, in float32.

    Args:
        x: `[..., head_dim]`.
        cos, sin: `[..., head_dim / 2]`, broadcast against `x`.
    """
    first, second = widen(x).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)

"""What the engine computes with of a checkpoint's configuration, beyond names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from step3.checkpoint.bounded_json import read_object
from step3.checkpoint.config import MAX_CONFIG_BYTES, CheckpointConfig, TextSizes, VisionSizes
from step3.errors import Step3Error

ACTIVATIONS = ("quick_gelu", "gelu")


@dataclass(frozen=True)
class VisionNetwork:
    """The vision tower and how its features enter a prompt.

    Attributes:
        stride: of the first convolution behind the tower.
        image_token_id: the token in whose places features stand (`<im_patch>`).
        image_token_len, patch_token_len: features of a whole picture and of a crop.
    """

    sizes: VisionSizes
    num_attention_heads: int
    layer_norm_eps: float
    hidden_act: str
    stride: int
    image_token_id: int
    image_token_len: int
    patch_token_len: int


@dataclass(frozen=True)
class Network:
    """The decoder's numbers, and those of the vision tower where there is one.

    Attributes:
        rope_scaling: as in config.json, or None.
        norm_expert_weight: whether the chosen experts' weights are scaled to sum to one.
        max_positions: longest context that the model was made for.
        stop_token_ids: tokens that end an answer, of config.json and generation_config.json.
    """

    sizes: TextSizes
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    norm_expert_weight: bool
    max_positions: int
    stop_token_ids: frozenset[int]
    vision: VisionNetwork | None = None


def read_network(folder: Path, config: CheckpointConfig) -> Network:
    """The network in a checkpoint's folder, whose sizes were read already.

    Raises:
        Step3Error: a field is not of its type or out of its range; an activation that is not known.
    """
    top = read_object(folder / "config.json", MAX_CONFIG_BYTES)
    text = top.get("text_config", top)
    fields = _Fields(text, "config.json: ")
    scaling = text.get("rope_scaling")
    if scaling is not None and not isinstance(scaling, Mapping):
        raise Step3Error(f"config.json: rope_scaling must be an object or null, found {scaling!r:.200}")
    longest = "max_position_embedding" if "max_position_embedding" in text else "max_position_embeddings"
    generation = _optional_object(folder / "generation_config.json")
    return Network(
        sizes=config.text,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-5),
        rope_theta=fields.number("rope_theta", 500000),
        rope_scaling=scaling,
        norm_expert_weight=fields.flag("norm_expert_weight", default=False),
        max_positions=fields.count(longest, 65536),
        stop_token_ids=_stop_token_ids(generation) or _stop_token_ids(top) or _stop_token_ids(text),
        vision=_vision(top, config.vision) if config.vision else None,
    )


def default_sampling(folder: Path) -> dict[str, Any]:
    """The sampling parameters that generation_config.json recommends, by `SamplingParams`' names."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    given = _optional_object(folder / "generation_config.json")
    return {name: given[name] for name in names if given.get(name) is not None}


def _vision(top: Mapping[str, Any], sizes: VisionSizes) -> VisionNetwork:
    own = _Fields(top["vision_config"], "config.json: vision_config.")
    fields = _Fields(top, "config.json: ")
    activation = top["vision_config"].get("hidden_act", "quick_gelu")
    if activation not in ACTIVATIONS:
        raise Step3Error(
            f"config.json: vision_config.hidden_act must be {' or '.join(ACTIVATIONS)}, found {activation!r}"
        )
    heads = own.count("num_attention_heads", 16)
    if sizes.hidden_size % heads:
        raise Step3Error(
            f"config.json: vision_config.hidden_size must be a multiple of num_attention_heads = {heads}, "
            f"found {sizes.hidden_size}"
        )
    return VisionNetwork(
        sizes=sizes,
        num_attention_heads=heads,
        layer_norm_eps=own.number("layer_norm_eps", 1e-5),
        hidden_act=activation,
        stride=fields.count("understand_projector_stride", 2),
        image_token_id=fields.count("image_token_id", 128001, least=0),
        image_token_len=fields.count("image_token_len", 169),
        patch_token_len=fields.count("patch_token_len", 81),
    )


class _Fields:
    """One JSON object, whose values are checked as they are read."""

    def __init__(self, values: Mapping[str, Any], prefix: str) -> None:
        self._values, self._prefix = values, prefix

    def number(self, name: str, default: float) -> float:
        value = self._values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise Step3Error(f"{self._prefix}{name} must be a number over 0, found {value!r}")
        return float(value)

    def count(self, name: str, default: int, least: int = 1) -> int:
        value = self._values.get(name, default)
        if type(value) is not int or value < least:
            raise Step3Error(f"{self._prefix}{name} must be a whole number from {least}, found {value!r}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self._values.get(name, default)
        if type(value) is not bool:
            raise Step3Error(f"{self._prefix}{name} must be true or false, found {value!r}")
        return value


def _optional_object(file: Path) -> Mapping[str, Any]:
    return read_object(file, MAX_CONFIG_BYTES) if file.is_file() else {}


def _stop_token_ids(fields: Mapping[str, Any]) -> frozenset[int]:
    value = fields.get("eos_token_id")
    listed = [] if value is None else value if isinstance(value, list) else [value]
    if any(type(token) is not int for token in listed):
        raise Step3Error(f"eos_token_id must be a token's id or a list of them, found {value!r:.200}")
    return frozenset(listed)

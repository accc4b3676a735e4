"""What a checkpoint's `config.json` says about its tensors: sizes, vision tower or none, quantised or not.

Only what names and shapes depend on is read; every other field is left to those who run the network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from step3.checkpoint.bounded_json import read_object
from step3.checkpoint.errors import CheckpointError

BLOCK = 128
"""Side of the square blocks that share one scale in a block-fp8 weight."""

MAX_CONFIG_BYTES = 16 << 20
MAX_LAYERS = 4096
MAX_SIZE = 1 << 31


@dataclass(frozen=True)
class TextSizes:
    """Sizes of the decoder, named as in `config.json`."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_hidden_layers: int
    vocab_size: int
    moe_intermediate_size: int
    moe_num_experts: int
    moe_top_k: int
    share_expert_dim: int
    share_q_dim: int
    head_dim: int
    moe_layers: tuple[int, ...]
    """Layers with a router and experts, ascending; the others have a dense FFN."""


@dataclass(frozen=True)
class VisionSizes:
    """Sizes of the vision tower and of what joins it to the decoder."""

    hidden_size: int
    intermediate_size: int
    output_hidden_size: int
    num_hidden_layers: int
    num_channels: int
    image_size: int
    patch_size: int
    projector_bias: bool


@dataclass(frozen=True)
class BlockFp8:
    """The checkpoint's linear weights are block-fp8, except in modules whose name holds one of `kept`."""

    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckpointConfig:
    """All that names and shapes depend on. `vision` is None for a text-only checkpoint."""

    text: TextSizes
    vision: VisionSizes | None = None
    quantisation: BlockFp8 | None = None


class _Fields:
    """One JSON object of the config, whose values are asked for by name and checked as they are read."""

    def __init__(self, values: Mapping[str, Any], source: Path, prefix: str = "") -> None:
        self._values = values
        self._source = source
        self._prefix = prefix

    def refuse(self, name: str, expected: str) -> CheckpointError:
        found = repr(self._values[name]) if name in self._values else "nothing"
        return CheckpointError(
            f"{self._source}: {self._prefix}{name}: expected {expected}, found {found[:200]}"
        )

    def get(self, name: str) -> Any:
        return self._values.get(name)

    def size(self, name: str, limit: int = MAX_SIZE, default: int | None = None) -> int:
        value = self._values.get(name, default)
        if type(value) is not int or not 0 < value <= limit:
            raise self.refuse(name, f"a whole number from 1 to {limit}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self._values.get(name, default)
        if type(value) is not bool:
            raise self.refuse(name, "true or false")
        return value

    def section(self, name: str) -> "_Fields":
        value = self._values.get(name)
        if not isinstance(value, dict):
            raise self.refuse(name, "an object")
        return _Fields(value, self._source, f"{self._prefix}{name}.")


def read_config(path: Path) -> CheckpointConfig:
    """The config of a checkpoint: `path` is its folder or the `config.json` itself.

    Raises:
        CheckpointError: no config, not a Step3 config, a field missing or out of its range.
    """
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(
            f"{path}: expected a checkpoint's folder with a config.json, or a config.json; found neither"
        )
    return parse_config(read_object(file, MAX_CONFIG_BYTES), file)


def parse_config(values: Mapping[str, Any], source: Path) -> CheckpointConfig:
    """The config that the JSON object `values` describes; `source` is the file that an error names."""
    top = _Fields(values, source)
    kind = top.get("model_type")
    if kind == "step3_vl":
        vision = _vision(top.section("vision_config"), top.flag("projector_bias", default=False))
        return CheckpointConfig(_text(top.section("text_config")), vision, _quantisation(top))
    if kind == "step3_text":
        return CheckpointConfig(_text(top), None, _quantisation(top))
    raise top.refuse("model_type", "'step3_vl' or 'step3_text' (this is not a Step3 checkpoint)")


def _text(fields: _Fields) -> TextSizes:
    if fields.size("num_attention_groups", default=1) != 1:
        raise fields.refuse("num_attention_groups", "1 (all query heads share one key and one value head)")
    layers = fields.size("num_hidden_layers", MAX_LAYERS)
    experts = fields.size("moe_num_experts")
    return TextSizes(
        hidden_size=fields.size("hidden_size"),
        intermediate_size=fields.size("intermediate_size"),
        num_attention_heads=fields.size("num_attention_heads"),
        num_hidden_layers=layers,
        vocab_size=fields.size("vocab_size"),
        moe_intermediate_size=fields.size("moe_intermediate_size"),
        moe_num_experts=experts,
        moe_top_k=fields.size("moe_top_k", limit=experts),
        share_expert_dim=fields.size("share_expert_dim"),
        share_q_dim=fields.size("share_q_dim"),
        head_dim=fields.size("head_dim"),
        moe_layers=_moe_layers(fields, layers),
    )


def _moe_layers(fields: _Fields, layers: int) -> tuple[int, ...]:
    """`moe_layers_enum`: the published string "4,5,…,59", or a list; without it all layers but the first."""
    expected = f"numbers of layers from 0 to {layers - 1}, each once, as a list or separated by commas"
    value = fields.get("moe_layers_enum")
    if value is None:
        return tuple(range(1, layers))
    items = value.split(",") if isinstance(value, str) else value
    if items == [""]:
        return ()
    if not isinstance(items, list):
        raise fields.refuse("moe_layers_enum", expected)
    try:
        numbers = [int(item) if isinstance(item, str) else item for item in items]
    except ValueError:
        raise fields.refuse("moe_layers_enum", expected) from None
    if any(type(n) is not int or not 0 <= n < layers for n in numbers) or len(set(numbers)) < len(numbers):
        raise fields.refuse("moe_layers_enum", expected)
    return tuple(sorted(numbers))


def _vision(fields: _Fields, projector_bias: bool) -> VisionSizes:
    return VisionSizes(
        hidden_size=fields.size("hidden_size"),
        intermediate_size=fields.size("intermediate_size"),
        output_hidden_size=fields.size("output_hidden_size"),
        num_hidden_layers=fields.size("num_hidden_layers", MAX_LAYERS),
        num_channels=fields.size("num_channels", default=3),
        image_size=fields.size("image_size"),
        patch_size=fields.size("patch_size"),
        projector_bias=projector_bias,
    )


def _quantisation(top: _Fields) -> BlockFp8 | None:
    if top.get("quantization_config") is None:
        return None
    fields = top.section("quantization_config")
    if fields.get("quant_method") != "fp8":
        raise fields.refuse("quant_method", "'fp8'")
    if fields.get("weight_block_size") != [BLOCK, BLOCK]:
        raise fields.refuse("weight_block_size", f"[{BLOCK}, {BLOCK}]")
    name = "modules_to_not_convert" if fields.get("modules_to_not_convert") is not None else "ignored_layers"
    kept = fields.get(name) or []
    if not isinstance(kept, list) or not all(isinstance(module, str) and module for module in kept):
        raise fields.refuse(name, "a list of module names")
    return BlockFp8(tuple(kept))

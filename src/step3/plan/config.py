"""A model's sizes from its Hugging Face `config.json`; neither torch nor Transformers is needed.

Only what a `config.json` leaves out by convention is filled in: `head_dim` as hidden size over heads,
`num_key_value_heads` as many as heads. Anything else that is missing is an error that names it.
"""

import json
from pathlib import Path
from typing import Any

from step3.plan.catalogue import read_small
from step3.plan.errors import ModelError
from step3.plan.families import LAYER_READERS
from step3.plan.fields import Fields
from step3.plan.precision import Precision
from step3.plan.shape import Layer, ModelShape

MAX_CONFIG_BYTES = 4 << 20
MAX_LAYERS = 10_000


def read_config(path: Path, weights: str | None = None) -> ModelShape:
    """The sizes in a `config.json`, or in the one inside a checkpoint's folder.

    Args:
        path: the file or the folder.
        weights: the type of attention and FFN weights; None is as the checkpoint stores them.

    Raises:
        ModelError: the file cannot be read, its `model_type` is unknown, or a field is missing or wrong.
    """
    if path.is_dir():
        path = path / "config.json"
    content = read_small(path, MAX_CONFIG_BYTES, ModelError)
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    name = path.parent.name if path.name == "config.json" else path.stem
    return shape_from_config(values, name or str(path), str(path), weights)


def shape_from_config(values: Any, name: str, owner: str, weights: str | None = None) -> ModelShape:
    """The sizes in a parsed `config.json`; `owner` starts every error message.

    Raises:
        ModelError: the `model_type` is unknown, or a field is missing or wrong.
    """
    whole = Fields(values, owner, ModelError)
    model_type = whole.text("model_type")
    read_layers = LAYER_READERS.get(model_type.lower())
    if read_layers is None:
        raise ModelError(
            f"{owner}: model_type {model_type[:60]!r} is not one that the planner knows: "
            f"{', '.join(LAYER_READERS)}"
        )
    text = whole.inner("text_config") if whole.has("text_config") else whole
    count = text.integer("num_hidden_layers")
    if count > MAX_LAYERS:
        raise text.fail(f"num_hidden_layers is {count}: at most {MAX_LAYERS} are accepted")
    return ModelShape(
        name=name,
        hidden=text.integer("hidden_size"),
        vocabulary=text.integer("vocab_size"),
        layers=tuple(Layer(attention, ffn) for attention, ffn in read_layers(text, count)),
        precision=_stored_precision(text if text.has("quantization_config") else whole, weights),
        tied_embeddings=text.flag("tie_word_embeddings", whole.flag("tie_word_embeddings", False)),
        vision_parameters=_step3_vision(whole) if model_type == "step3_vl" else 0,
        draft_layers=_optional_count(text, "num_nextn_predict_layers", "num_mtp_layers", "num_mtp_modules"),
        max_context=_optional_count(text, "max_position_embeddings", "max_position_embedding", "max_seq_len")
        or None,
    )


def _optional_count(fields: Fields, *names: str) -> int:
    found = [name for name in names if fields.has(name)]
    return fields.integer(found[0], least=0) if found else 0


def _stored_precision(fields: Fields, weights: str | None) -> Precision:
    """The types that a checkpoint is stored in; the cache, which it does not say, in bf16."""
    if weights is not None:
        return Precision(attention_weights=weights, ffn_weights=weights, kv="bf16", kv_windowed="bf16")
    if not fields.has("quantization_config"):
        return Precision(attention_weights="bf16", ffn_weights="bf16", kv="bf16", kv_windowed="bf16")
    method = fields.inner("quantization_config").text("quant_method")
    types = {"fp8": ("fp8", "fp8"), "mxfp4": ("bf16", "fp4")}
    if method not in types:
        raise fields.fail(
            f"quant_method {method[:60]!r} is not one that the planner knows ({', '.join(types)}): "
            "say what the weights are with --weights"
        )
    attention, ffn = types[method]
    return Precision(attention_weights=attention, ffn_weights=ffn, kv="bf16", kv_windowed="bf16")


def _step3_vision(whole: Fields) -> int:
    """Weights of Step3's vision tower, its two convolutions and the projector."""
    if not whole.has("vision_config"):
        return 0
    vision, text = whole.inner("vision_config"), whole.inner("text_config")
    hidden, inner = vision.integer("hidden_size"), vision.integer("intermediate_size")
    channels = vision.integer("output_hidden_size")
    layer = 4 * hidden * hidden + 2 * hidden * inner
    patches = (vision.integer("image_size") // vision.integer("patch_size")) ** 2
    embedding = hidden * (vision.integer("num_channels", 3) * vision.integer("patch_size") ** 2 + patches + 2)
    behind = 4 * hidden * channels + 9 * channels * 2 * channels + 2 * channels * text.integer("hidden_size")
    return vision.integer("num_hidden_layers") * layer + embedding + behind

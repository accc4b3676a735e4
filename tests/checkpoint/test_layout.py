import json

import pytest
from checkpoints import GOLDEN, PUBLISHED
from safetensors import safe_open

from step3.checkpoint.config import parse_config, read_config
from step3.checkpoint.layout import Kind, layout, official_name


def stored(name: str) -> dict[str, list[int]]:
    with safe_open(GOLDEN / name / "model.safetensors", "pt") as file:
        return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("name", ["text", "text-fp8", "vl"])
def test_names_and_shapes_are_those_of_the_golden_checkpoints(name):
    expected = {}
    for spec in layout(read_config(GOLDEN / name)).values():
        expected[spec.name] = list(spec.shape)
        if spec.quantised:
            expected[spec.scale_name] = list(spec.scale_shape)
    assert expected == stored(name)


def test_published_experts_have_the_published_shape():
    specs = layout(read_config(PUBLISHED))
    assert specs["model.layers.4.moe.gate_proj.weight"].shape == (48, 5120, 7168)
    assert specs["model.layers.59.moe.down_proj.weight"].shape == (48, 7168, 5120)
    assert specs["model.layers.60.mlp.down_proj.weight"].shape == (7168, 18432)
    assert "model.layers.3.moe.gate.weight" not in specs


def test_scales_round_up_and_keep_the_experts():
    specs = layout(read_config(PUBLISHED))
    assert specs["model.layers.4.moe.down_proj.weight"].scale_shape == (48, 56, 40)
    assert layout(read_config(GOLDEN / "text"))["model.layers.1.moe.up_proj.weight"].scale_shape == (8, 1, 1)


def test_projector_bias_only_when_the_config_says_so():
    values = json.loads((GOLDEN / "vl" / "config.json").read_text())
    without = layout(parse_config(values, GOLDEN))
    with_bias = layout(parse_config(values | {"projector_bias": True}, GOLDEN))
    assert set(with_bias) - set(without) == {"vit_large_projector.bias"}
    assert with_bias["vit_large_projector.bias"].shape == (128,)


def test_only_attention_and_ffn_are_quantised():
    values = json.loads((GOLDEN / "vl" / "config.json").read_text())
    fp8 = json.loads((GOLDEN / "text-fp8" / "config.json").read_text())["quantization_config"]
    specs = layout(parse_config(values | {"quantization_config": fp8}, GOLDEN)).values()
    assert {spec.kind for spec in specs if spec.quantised} == {
        Kind.ATTENTION,
        Kind.DENSE_FFN,
        Kind.EXPERTS,
        Kind.SHARED_EXPERT,
    }


def test_modules_that_the_config_keeps_are_not_quantised():
    values = json.loads((GOLDEN / "text-fp8" / "config.json").read_text())
    values["quantization_config"]["modules_to_not_convert"] = ["layers.1.self_attn.o_proj"]
    specs = layout(parse_config(values, GOLDEN))
    kept = {spec.name for spec in specs.values() if spec.linear and not spec.quantised}
    assert kept == {"model.layers.1.self_attn.o_proj.weight"}


@pytest.mark.parametrize(
    ("name", "official"),
    [
        ("model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.vision_model.embeddings.class_embedding", "vision_model.embeddings.class_embedding"),
        ("model.vit_downsampler2.bias", "vit_downsampler2.bias"),
        ("model.norm.weight", "model.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_names_of_the_module_tree_are_read_as_official(name, official):
    assert official_name(name) == official

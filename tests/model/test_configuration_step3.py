import json
from pathlib import Path
from typing import Any

import pytest
from small import text_config, vl_config
from transformers import AutoConfig

from step3.errors import Step3Error
from step3.model.configuration_step3 import Step3TextConfig, Step3VisionConfig, Step3VLConfig

DATA = Path(__file__).parents[1] / "data"
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}


class TestDefaults:
    """What a config.json leaves out is as published."""

    def test_are_the_published_sizes(self) -> None:
        published = json.loads((DATA / "published" / "config.json").read_text())
        config = Step3VLConfig()
        for part, kind in (("text_config", config.text_config), ("vision_config", config.vision_config)):
            fields = {
                name: value
                for name, value in published[part].items()
                if name not in ("architectures", "torch_dtype", "moe_layers_enum", "model_type")
            }
            assert {name: getattr(kind, name) for name in fields} == fields
        for name in ("understand_projector_stride", "projector_bias", "image_token_id", "image_token_len"):
            assert getattr(config, name) == published[name]
        assert config.patch_token_len == 81

    def test_layers_with_experts_are_all_but_the_first(self) -> None:
        assert text_config(moe_layers_enum=None).moe_layers == {1, 2}


class TestMoELayers:
    @pytest.mark.parametrize("listed", ["0,2", " 0 , 2 ", "0,2,", [0, 2], (2, 0), ["0", "2"]])
    def test_are_a_string_or_a_list(self, listed: Any) -> None:
        assert text_config(moe_layers_enum=listed).moe_layers == {0, 2}

    def test_none_at_all(self) -> None:
        assert text_config(moe_layers_enum="").moe_layers == frozenset()

    def test_of_the_published_config(self) -> None:
        config = AutoConfig.from_pretrained(DATA / "published")
        assert config.text_config.moe_layers == set(range(4, 60))


class TestOtherSpellings:
    def test_names_of_transformers_reach_the_published_fields(self) -> None:
        config = text_config(max_position_embedding=99)
        assert config.max_position_embeddings == 99
        assert config.num_key_value_heads == 1
        config.max_position_embeddings = 7
        assert config.max_position_embedding == 7

    def test_rope_parameters_of_transformers_5(self) -> None:
        plain = text_config(rope_parameters={"rope_type": "default", "rope_theta": 123.0})
        assert plain.rope_theta == 123.0
        assert plain.rope_scaling is None
        scaled = text_config(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0})
        assert scaled.rope_theta == 5.0
        assert scaled.rope_scaling == {"rope_type": "linear", "factor": 2.0}

    def test_rope_scaling_is_written_as_it_was_read(self) -> None:
        scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16384}
        config = text_config(rope_scaling=scaling)
        assert json.loads(config.to_json_string())["rope_scaling"] == scaling
        assert json.loads(config.to_json_string())["rope_theta"] == 500000

    def test_unknown_fields_are_kept(self) -> None:
        assert (
            json.loads(vl_config(im_start_token="<im_start>").to_json_string())["im_start_token"]
            == "<im_start>"
        )

    def test_references_to_code_are_dropped(self) -> None:
        code = {"auto_map": {"AutoConfig": "x.Y"}, "custom_pipelines": {"z": {"impl": "x.Z"}}}
        for config in (vl_config(**code), text_config(**code), Step3VisionConfig(**code)):
            assert not hasattr(config, "auto_map")
            assert not hasattr(config, "custom_pipelines")


class TestBlockFp8:
    def test_is_not_shown_to_transformers_as_its_own(self) -> None:
        config = text_config(quantization_config=FP8)
        assert not hasattr(config, "quantization_config")
        assert config.weight_block_size == (128, 128)

    def test_of_a_network_with_eyes_holds_for_its_decoder(self) -> None:
        assert vl_config(quantization_config=FP8).text_config.weight_block_size == (128, 128)
        assert vl_config(text={"quantization_config": FP8}).text_config.weight_block_size == (128, 128)

    def test_none(self) -> None:
        assert text_config().weight_block_size is None
        assert text_config().unquantised_names == ()

    @pytest.mark.parametrize("field", ["modules_to_not_convert", "ignored_layers"])
    def test_names_of_what_is_not_quantised_come_under_either_field(self, field: str) -> None:
        config = text_config(quantization_config={**FP8, field: ["share_expert"]})
        assert config.unquantised_names == ("share_expert",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be a positive whole number, found 0"),
        ({"hidden_size": "128"}, "hidden_size must be a positive whole number, found '128'"),
        ({"hidden_size": True}, "hidden_size must be a positive whole number, found True"),
        ({"vocab_size": 1 << 40}, "vocab_size must be a positive whole number"),
        ({"share_q_dim": -1}, "share_q_dim must be a positive whole number"),
        ({"intermediate_size": None}, "intermediate_size must be a positive whole number"),
        ({"num_attention_groups": 0}, "num_attention_groups must be a positive whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 4096"),
        ({"num_attention_heads": 3, "num_attention_groups": 2}, "num_attention_heads must be a multiple of"),
        ({"head_dim": 7}, "head_dim must be a multiple of 2, found 7"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a positive number"),
        ({"rope_theta": "x"}, "rope_theta must be a positive number, found 'x'"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object or null, found 'linear'"),
        ({"moe_top_k": 5}, "moe_top_k must be at most moe_num_experts = 4, found 5"),
        ({"moe_top_k": 0}, "moe_top_k must be a positive whole number"),
        ({"moe_num_experts": 0}, "moe_num_experts must be a positive whole number"),
        (
            {"moe_layers_enum": "1,two"},
            "moe_layers_enum must list layer numbers, as in '4,5,6', found '1,two'",
        ),
        ({"moe_layers_enum": 5}, "moe_layers_enum must list layer numbers"),
        ({"moe_layers_enum": "1,3"}, r"moe_layers_enum names layer 3, but there are 3 layers \(0 to 2\)"),
        ({"moe_layers_enum": [-1]}, "moe_layers_enum names layer -1"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', found 'gelu'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings must be false"),
        ({"quantization_config": "fp8"}, "quantization_config must be an object, found 'fp8'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quant_method must be 'fp8', found 'awq'"),
        (
            {"quantization_config": {**FP8, "weight_block_size": [128]}},
            "weight_block_size must be two positive",
        ),
        (
            {"quantization_config": {**FP8, "weight_block_size": [128, 0]}},
            "weight_block_size must be two positive",
        ),
        ({"quantization_config": {"quant_method": "fp8"}}, "weight_block_size must be two positive"),
        (
            {"quantization_config": {**FP8, "ignored_layers": "moe"}},
            "ignored_layers must be a list of module names",
        ),
    ],
)
def test_text_field_that_cannot_work_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Step3Error, match=message):
        text_config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 0}, "patch_size must be a positive whole number"),
        ({"image_size": 0}, "image_size must be a positive whole number"),
        ({"image_size": 730}, "image_size must be a multiple of patch_size = 14, found 730"),
        ({"num_attention_heads": 5}, "hidden_size must be a multiple of num_attention_heads = 5, found 1792"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number from 1 to 4096"),
        ({"output_hidden_size": 1.5}, "output_hidden_size must be a positive whole number"),
        ({"layer_norm_eps": None}, "layer_norm_eps must be a positive number"),
    ],
)
def test_vision_field_that_cannot_work_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Step3Error, match=message):
        Step3VisionConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_config": 5}, "text_config must be an object, found int"),
        ({"vision_config": "x"}, "vision_config must be an object, found str"),
        ({"image_token_id": 40}, "image_token_id must be a token below vocab_size = 40, found 40"),
        ({"image_token_id": None}, "image_token_id must be a token"),
        ({"understand_projector_stride": 0}, "understand_projector_stride must be a positive whole number"),
        ({"image_token_len": 0}, "image_token_len must be a positive whole number"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings must be false"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method must be 'fp8', found 'gptq'"),
    ],
)
def test_field_of_the_whole_that_cannot_work_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Step3Error, match=message):
        vl_config(**changes)


def test_bad_config_file_is_refused_with_the_same_words(tmp_path: Path) -> None:
    fields = json.loads((DATA / "golden" / "text" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "moe_top_k": 99}))
    with pytest.raises(Step3Error, match="moe_top_k must be at most moe_num_experts = 8, found 99"):
        AutoConfig.from_pretrained(tmp_path)


def test_parts_may_be_given_as_configurations() -> None:
    text = text_config()
    assert Step3VLConfig(text_config=text, image_token_id=5).get_text_config() is text
    assert isinstance(
        Step3VLConfig(text_config=text.to_dict(), image_token_id=5).text_config, Step3TextConfig
    )

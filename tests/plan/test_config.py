import json
from pathlib import Path
from typing import Any

import pytest

from step3.errors import Step3Error
from step3.plan.attention import GroupedAttention, LightningAttention, MultiMatrixAttention
from step3.plan.catalogue import load_yaml, packaged
from step3.plan.config import MAX_CONFIG_BYTES, read_config, shape_from_config
from step3.plan.errors import ModelError
from step3.plan.families import LAYER_READERS
from step3.plan.ffn import DenseFFN, ExpertFFN
from step3.plan.shape import ModelShape

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def published(name: str) -> dict[str, Any]:
    entry = load_yaml(packaged("models.yaml"), ModelError).inner(name)
    return json.loads(json.dumps(entry.values["config"]))


def shape(config: dict[str, Any]) -> ModelShape:
    return shape_from_config(config, "m", "config.json")


def test_reads_a_text_checkpoint_without_torch_or_transformers() -> None:
    model = read_config(GOLDEN / "text")
    assert model.hidden == 128
    assert [isinstance(layer.ffn, ExpertFFN) for layer in model.layers] == [False, True, True, False]
    assert all(isinstance(layer.attention, MultiMatrixAttention) for layer in model.layers)


def test_the_vision_tower_counts_where_there_is_one() -> None:
    text, vision = read_config(GOLDEN / "text"), read_config(GOLDEN / "vl" / "config.json")
    assert text.vision_parameters == 0
    assert vision.vision_parameters > 0


def test_weights_are_what_the_checkpoint_stores() -> None:
    assert read_config(GOLDEN / "text").precision.ffn_weights == "bf16"
    assert read_config(GOLDEN / "text-fp8").precision.ffn_weights == "fp8"
    assert read_config(GOLDEN / "text", weights="int8").precision.attention_weights == "int8"


def test_an_unknown_quantisation_asks_for_the_weights_type() -> None:
    config = {**published("Llama 3.1 8B"), "quantization_config": {"quant_method": "awq"}}
    with pytest.raises(ModelError, match=r"'awq'.*--weights"):
        shape(config)
    assert shape_from_config(config, "m", "c", weights="fp4").precision.ffn_weights == "fp4"


def test_mxfp4_holds_for_experts_only() -> None:
    config = {**published("gpt-oss-120b"), "quantization_config": {"quant_method": "mxfp4"}}
    assert (shape(config).precision.attention_weights, shape(config).precision.ffn_weights) == ("bf16", "fp4")


BILLIONS = {
    "Step-3": 316.3,
    "DSv3": 671.0,
    "Kimi K2": 1026.4,
    "Qwen3 MoE": 235.1,
    "Qwen3 32B": 32.8,
    "Llama 4 M": 400.7,
    "MM M1": 456.1,
    "ERNIE 4.5": 299.5,
    "Pangu Pro MoE": 72.0,
    "Step-3.5 Flash": 197.0,
    "gpt-oss-120b": 116.8,
    "Mixtral 8x7B": 46.7,
    "Llama 3.1 70B": 70.6,
    "Llama 3.1 8B": 8.0,
}


@pytest.mark.parametrize(("name", "billions"), BILLIONS.items())
def test_each_family_adds_up_to_its_published_size(name: str, billions: float) -> None:
    assert shape(published(name)).text_parameters / 1e9 == pytest.approx(billions, abs=0.06)


def test_every_model_type_of_the_catalogue_has_a_reader_and_a_text_only_form() -> None:
    assert {"step3_vl", "step3_text", "step3p5", "step3p7", "deepseek_v3", "kimi_k2"} <= set(LAYER_READERS)
    assert {"qwen3", "qwen3_moe", "llama", "llama4", "minimax_m1", "ernie4_5_moe"} <= set(LAYER_READERS)
    assert {"pangupromoe", "mixtral", "gpt_oss"} <= set(LAYER_READERS)


def test_step_3_7_wraps_the_text_model_of_step_3_5() -> None:
    text = published("Step-3.5 Flash")
    wrapped = {"model_type": "step3p7", "text_config": {**text, "model_type": "step3p7_text"}}
    assert shape(wrapped).layers == shape(text).layers


def test_step_3_5_gives_sliding_layers_their_own_heads_and_a_gate() -> None:
    model = shape(published("Step-3.5 Flash"))
    full, sliding = model.layers[0].attention, model.layers[1].attention
    assert full == GroupedAttention(64, 8, 128, None, 64)
    assert sliding == GroupedAttention(96, 8, 128, 512, 96)
    assert len(model.layers) == 45
    assert model.draft_layers == 3


def test_llama_4_alternates_dense_and_experts_and_leaves_every_fourth_layer_unchunked() -> None:
    model = shape(published("Llama 4 M"))
    windows = [layer.attention.window for layer in model.layers if hasattr(layer.attention, "window")]
    assert windows[:4] == [8192, 8192, 8192, None]
    assert isinstance(model.layers[0].ffn, DenseFFN)
    assert isinstance(model.layers[1].ffn, ExpertFFN)
    named = {**published("Llama 4 M"), "moe_layers": [0], "no_rope_layers": [1, 0] * 24}
    assert isinstance(shape(named).layers[0].ffn, ExpertFFN)
    assert shape(named).layers[1].attention == GroupedAttention(40, 8, 128)


def test_minimax_has_softmax_in_every_eighth_layer() -> None:
    attentions = [layer.attention for layer in shape(published("MM M1")).layers]
    assert sum(isinstance(a, LightningAttention) for a in attentions) == 70
    assert isinstance(attentions[7], GroupedAttention)
    in_transformers = published("MM M1")
    in_transformers.pop("attn_type_list")
    kinds = ["linear_attention"] * 7 + ["full_attention"]
    in_transformers.update(model_type="minimax", layer_types=kinds * 10)
    assert [layer.attention for layer in shape(in_transformers).layers] == attentions


def test_qwen_slides_only_where_it_is_switched_on() -> None:
    base = {**published("Qwen3 32B"), "sliding_window": 4096, "max_window_layers": 60}
    assert all(layer.attention.window is None for layer in shape(base).layers)  # type: ignore[union-attr]
    on = shape({**base, "use_sliding_window": True})
    assert [layer.attention.window for layer in on.layers[59:61]] == [None, 4096]  # type: ignore[union-attr]


def test_mistral_slides_everywhere() -> None:
    config = {**published("Llama 3.1 8B"), "model_type": "mistral", "sliding_window": 4096}
    assert {layer.attention.window for layer in shape(config).layers} == {4096}  # type: ignore[union-attr]


def test_head_dim_is_hidden_over_heads_where_it_is_left_out() -> None:
    config = published("Llama 3.1 8B")
    assert "head_dim" not in config
    assert shape(config).layers[0].attention == GroupedAttention(32, 8, 128)
    with pytest.raises(ModelError, match="head_dim is missing"):
        shape({**config, "num_attention_heads": 33})


@pytest.mark.parametrize("name", BILLIONS)
def test_a_missing_field_is_named(name: str) -> None:
    config = published(name)
    text = config.get("text_config", config)
    optional = {
        "model_type",
        "head_dim",
        "num_key_value_heads",
        "decoder_sparse_step",
        "no_rope_layer_interval",
        "moe_num_shared_experts",
        "shared_expert_intermediate_size",
        "max_position_embeddings",
        "max_position_embedding",
        "max_seq_len",
        "num_nextn_predict_layers",
        "use_head_wise_attn_gate",
        "attention_other_setting",
    }
    for field in set(text) - optional:
        rest = {key: value for key, value in text.items() if key != field}
        broken = {**config, "text_config": rest} if text is not config else rest
        with pytest.raises(ModelError, match=field):
            shape(broken)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "bert"}, "model_type 'bert' is not one that the planner knows: step3_vl"),
        ({"model_type": None}, "model_type is missing"),
        ({"hidden_size": "7168"}, "hidden_size must be a whole number"),
        ({"hidden_size": -1}, "hidden_size must be a whole number"),
        ({"hidden_size": 10**12}, "hidden_size must be a whole number"),
        ({"hidden_size": True}, "hidden_size must be a whole number"),
        ({"num_hidden_layers": 10**8}, "at most 10000"),
        ({"moe_layers_enum": "4,x"}, "moe_layers_enum must hold layer numbers"),
        ({"moe_top_k": 49}, "more than the 48 experts"),
        ({"num_attention_groups": 2}, "MFA has one key and value head"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
    ],
)
def test_a_wrong_value_is_named(changes: dict[str, Any], says: str) -> None:
    config = {**published("Step-3")["text_config"], "model_type": "step3_text", **changes}
    with pytest.raises(ModelError, match=says) as error:
        shape(config)
    assert isinstance(error.value, Step3Error)


def test_openpangus_second_version_is_refused_not_guessed() -> None:
    with pytest.raises(ModelError, match="second version"):
        shape({**published("Pangu Pro MoE"), "qk_nope_dim": 128})


def test_an_unknown_layer_type_is_refused() -> None:
    config = published("gpt-oss-120b")
    config["layer_types"][3] = "mamba"
    with pytest.raises(ModelError, match="layer_types names mamba"):
        shape(config)
    config["layer_types"] = config["layer_types"][:10]
    with pytest.raises(ModelError, match="10 entries for 36 layers"):
        shape(config)


def test_files_that_are_no_config_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ModelError, match="cannot be read"):
        read_config(path)
    for content, says in (("{", "not JSON"), ("[1]", "expected a mapping"), ("[" * 100_000, "not JSON")):
        path.write_text(content)
        with pytest.raises(ModelError, match=says):
            read_config(path)
    path.write_bytes(b" " * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(ModelError, match="larger than"):
        read_config(path)

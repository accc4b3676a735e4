import json
from pathlib import Path

import pytest
from checkpoints import GOLDEN, PUBLISHED

from step3.checkpoint.config import BlockFp8, parse_config, read_config
from step3.checkpoint.errors import CheckpointError

TEXT = json.loads((GOLDEN / "text" / "config.json").read_text())
VL = json.loads((GOLDEN / "vl" / "config.json").read_text())
FP8 = json.loads((GOLDEN / "text-fp8" / "config.json").read_text())


def refusal(values: dict) -> str:
    with pytest.raises(CheckpointError) as caught:
        parse_config(values, Path("here/config.json"))
    return str(caught.value)


def test_published_config_has_the_published_sizes():
    config = read_config(PUBLISHED)
    assert (config.text.num_hidden_layers, config.text.hidden_size, config.text.moe_num_experts) == (
        61,
        7168,
        48,
    )
    assert config.text.moe_layers == tuple(range(4, 60))
    assert config.vision is not None
    assert config.vision.num_hidden_layers == 63
    assert config.quantisation is None


def test_text_only_config_has_its_fields_at_top_level():
    config = read_config(GOLDEN / "text" / "config.json")
    assert config.vision is None
    assert config.text.hidden_size == 128


def test_unknown_fields_are_ignored():
    assert parse_config(TEXT | {"surprise": [1]}, Path("c")) == parse_config(TEXT, Path("c"))


@pytest.mark.parametrize("written", ["2,1", " 1, 2 ", [1, 2]])
def test_moe_layers_may_be_text_or_a_list(written):
    assert parse_config(TEXT | {"moe_layers_enum": written}, Path("c")).text.moe_layers == (1, 2)


def test_without_the_field_all_layers_but_the_first_have_experts():
    values = {key: value for key, value in TEXT.items() if key != "moe_layers_enum"}
    assert parse_config(values, Path("c")).text.moe_layers == (1, 2, 3)
    assert parse_config(TEXT | {"moe_layers_enum": None}, Path("c")).text.moe_layers == (1, 2, 3)


def test_an_empty_list_of_moe_layers_means_all_dense():
    assert parse_config(TEXT | {"moe_layers_enum": ""}, Path("c")).text.moe_layers == ()


@pytest.mark.parametrize("written", ["1,4", "1,1", "1,x", [-1], [1.0], [True], 3, ",", " "])
def test_impossible_moe_layers_are_refused(written):
    message = refusal(TEXT | {"moe_layers_enum": written})
    assert "here/config.json: moe_layers_enum: expected numbers of layers from 0 to 3" in message


@pytest.mark.parametrize("found", ["128", 0, -1, 1.5, True, None, 2**40])
def test_a_bad_size_names_file_field_and_value(found):
    message = refusal(TEXT | {"hidden_size": found})
    assert message.startswith("here/config.json: hidden_size: expected a whole number from 1 to")
    assert message.endswith(f"found {found!r}")


def test_a_missing_size_is_refused_with_its_section():
    vl = VL | {"text_config": {k: v for k, v in VL["text_config"].items() if k != "head_dim"}}
    assert "text_config.head_dim: expected a whole number" in refusal(vl)
    assert refusal(vl).endswith("found nothing")


def test_more_chosen_experts_than_experts_are_refused():
    assert "moe_top_k: expected a whole number from 1 to 8, found 9" in refusal(TEXT | {"moe_top_k": 9})


def test_more_layers_than_any_model_has_are_refused():
    assert "num_hidden_layers" in refusal(TEXT | {"num_hidden_layers": 10**9})


def test_several_key_heads_are_refused():
    assert "num_attention_groups: expected 1" in refusal(TEXT | {"num_attention_groups": 8})


@pytest.mark.parametrize("kind", ["llama", None, 3])
def test_other_models_are_refused(kind):
    assert "not a Step3 checkpoint" in refusal(TEXT | {"model_type": kind})


def test_block_fp8_is_recognised():
    config = parse_config(FP8, Path("c"))
    assert config.quantisation == BlockFp8(kept=())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("quant_method", "gptq"),
        ("weight_block_size", [64, 64]),
        ("weight_block_size", None),
        ("ignored_layers", "x"),
    ],
)
def test_other_quantisations_are_refused(field, value):
    quantisation = FP8["quantization_config"] | {field: value}
    assert f"quantization_config.{field}: expected" in refusal(FP8 | {"quantization_config": quantisation})


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected a checkpoint's folder with a config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", b"[" * 100_000, b'{"a": 1, "a": 2}'])
def test_a_config_that_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(tmp_path)


def test_an_endless_config_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(CheckpointError, match="larger than"):
        read_config(tmp_path)

"""What the engine reads of config.json and generation_config.json."""

import json
from pathlib import Path
from typing import Any

import pytest

from step3.checkpoint import read_config
from step3.engine.network import Network, default_sampling, read_network
from step3.errors import Step3Error

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def changed(tmp_path: Path, name: str, **changes: Any) -> Network:
    """The network of a golden config with some fields changed; "a.b" is the field b of the object a."""
    config = json.loads((GOLDEN / name / "config.json").read_text())
    for path, value in changes.items():
        *outer, field = path.split("__")
        target = config
        for key in outer:
            target = target[key]
        if value is None:
            target.pop(field, None)
        else:
            target[field] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_network(tmp_path, read_config(tmp_path))


def test_reads_the_decoder() -> None:
    network = read_network(GOLDEN / "text", read_config(GOLDEN / "text"))
    assert (network.rms_norm_eps, network.rope_theta, network.max_positions) == (1e-5, 500000, 65536)
    assert network.norm_expert_weight is False
    assert network.vision is None


def test_reads_the_tower() -> None:
    vision = read_network(GOLDEN / "vl", read_config(GOLDEN / "vl")).vision
    assert vision is not None
    assert (vision.num_attention_heads, vision.stride, vision.image_token_id) == (4, 2, 7)
    assert (vision.image_token_len, vision.patch_token_len) == (169, 81)


def test_ends_answers_at_the_tokens_of_either_file(tmp_path: Path) -> None:
    assert changed(tmp_path, "text", eos_token_id=[4, 9]).stop_token_ids == {4, 9}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert changed(tmp_path, "text", eos_token_id=4).stop_token_ids == {5}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("text", {"rms_norm_eps": -1}, "rms_norm_eps must be a number over 0, found -1"),
        ("text", {"rope_theta": "big"}, "rope_theta must be a number over 0, found 'big'"),
        ("text", {"rope_scaling": 4}, "rope_scaling must be an object or null"),
        ("text", {"norm_expert_weight": 1}, "norm_expert_weight must be true or false"),
        ("text", {"max_position_embedding": 0}, "max_position_embedding must be a whole number from 1"),
        ("text", {"eos_token_id": "end"}, "eos_token_id must be a token's id"),
        ("vl", {"vision_config__hidden_act": "tanh"}, "hidden_act must be quick_gelu or gelu"),
        ("vl", {"vision_config__num_attention_heads": 5}, "hidden_size must be a multiple of"),
        ("vl", {"image_token_id": -1}, "image_token_id must be a whole number from 0"),
    ],
)
def test_refuses_what_it_cannot_compute_with(
    tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(Step3Error) as error:
        changed(tmp_path, name, **change)
    assert message in str(error.value)


def test_recommends_what_the_model_recommends(tmp_path: Path) -> None:
    assert default_sampling(tmp_path) == {}
    fields = {"temperature": 0.6, "top_p": 0.95, "top_k": None, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(fields))
    assert default_sampling(tmp_path) == {"temperature": 0.6, "top_p": 0.95}


def test_fields_that_are_left_out_have_the_published_values(tmp_path: Path) -> None:
    network = changed(tmp_path, "text", rms_norm_eps=None, rope_theta=None, norm_expert_weight=None)
    assert (network.rms_norm_eps, network.rope_theta, network.norm_expert_weight) == (1e-5, 500000, False)

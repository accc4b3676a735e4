import json
from dataclasses import replace

import pytest
from checkpoints import GOLDEN, PUBLISHED
from safetensors.torch import load_file

from step3.checkpoint.config import BlockFp8, parse_config, read_config
from step3.checkpoint.inventory import Machine, fits, take_inventory, this_machine
from step3.checkpoint.layout import Kind

STEP3 = take_inventory(read_config(PUBLISHED))


def test_step3_has_the_published_numbers_of_parameters():
    assert round(STEP3.text_parameters / 1e9) == 316
    assert round(STEP3.active_parameters / 1e9) == 38
    assert round(STEP3.total.parameters / 1e9) == 321
    assert round(STEP3.total.bytes["bf16"] / 1e9) == 642


def test_step3_keeps_one_key_and_one_value_head_a_layer():
    assert STEP3.kv_bytes_per_token == {"bf16": 61 * 2 * 256 * 2, "fp8": 61 * 2 * 256}


def test_kinds_sum_to_the_whole():
    assert sum(amount.parameters for amount in STEP3.kinds.values()) == STEP3.total.parameters
    for name in ("bf16", "block-fp8"):
        assert sum(amount.bytes[name] for amount in STEP3.kinds.values()) == STEP3.total.bytes[name]


@pytest.mark.parametrize(("name", "weights"), [("text", "bf16"), ("vl", "bf16"), ("text-fp8", "block-fp8")])
def test_bytes_are_those_on_disk(name, weights):
    stored = load_file(GOLDEN / name / "model.safetensors")
    inventory = take_inventory(read_config(GOLDEN / name))
    assert inventory.total.bytes[weights] == sum(tensor.nbytes for tensor in stored.values())


def test_active_parameters_are_those_that_a_token_meets():
    """Counted by hand for the golden sizes: 4 layers, two of them with 3 of 8 experts."""
    attention = 64 * 128 + 2 * 32 * 128 + 128 * 64 + 128 * 128
    norms = 2 * 128 + 64
    dense = 3 * 256 * 128
    moe = 8 * 128 + (3 + 1) * 3 * 64 * 128
    expected = 4 * (attention + norms) + 2 * dense + 2 * moe + 128 + 512 * 128
    assert take_inventory(read_config(GOLDEN / "text")).active_parameters == expected


def test_a_model_without_experts_is_active_but_for_its_embedding():
    values = json.loads((GOLDEN / "text" / "config.json").read_text()) | {"moe_layers_enum": ""}
    inventory = take_inventory(parse_config(values, GOLDEN))
    assert Kind.EXPERTS not in inventory.kinds
    assert inventory.active_parameters == inventory.text_parameters - 512 * 128


def test_the_weights_own_format_does_not_matter():
    config = read_config(PUBLISHED)
    assert take_inventory(replace(config, quantisation=BlockFp8())) == STEP3


def test_the_ffn_is_spread_and_the_rest_lies_whole_beside_the_cache():
    ffn = sum(STEP3.kinds[kind].bytes["bf16"] for kind in (Kind.DENSE_FFN, Kind.EXPERTS, Kind.SHARED_EXPERT))
    whole = STEP3.total.bytes["bf16"] - ffn
    bf16, fp8 = fits(STEP3, Machine("8 x 200 GB", 8, 200 * 10**9))
    assert bf16.bytes_each == whole + ffn // 8
    assert bf16.kv_tokens == 8 * ((180 * 10**9 - bf16.bytes_each) // STEP3.kv_bytes_per_token["bf16"])
    assert (bf16.weight_format, bf16.kv_format) == ("bf16", "bf16")
    assert (fp8.weight_format, fp8.kv_format) == ("block-fp8", "fp8")
    assert fp8.kv_tokens > 2 * bf16.kv_tokens


def test_weights_that_do_not_fit_leave_no_cache():
    assert [fit.kv_tokens for fit in fits(STEP3, Machine("8 x 24 GB", 8, 24 * 10**9))] == [None, None]


def test_this_machine_has_memory():
    assert this_machine().memory > 10**8

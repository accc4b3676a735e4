import json
import os
import re
import subprocess
import sys

import pytest
import torch
from checkpoints import GOLDEN, draw, read_tensors, reshard, rewrite, rewrite_config, same_bits, write_raw
from peak_memory import measure
from safetensors.torch import load_file, save_file

from step3.checkpoint import (
    ATTENTION_SIDE,
    FFN_SIDE,
    VISION_SIDE,
    Checkpoint,
    CheckpointError,
    Kind,
    Part,
    Slice,
)
from step3.checkpoint.block_fp8 import dequantise
from step3.checkpoint.quantisation import Quantisation

INDEX = "model.safetensors.index.json"


def problem(folder) -> str:
    problems = Checkpoint.open(folder).problems()
    assert len(problems) == 1
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder).check()
    assert str(caught.value) == problems[0]
    return problems[0]


def refusal(folder) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    return str(caught.value)


@pytest.mark.parametrize("name", ["text", "text-fp8", "vl"])
def test_golden_checkpoints_are_whole_and_read_bit_for_bit(name):
    checkpoint = Checkpoint.open(GOLDEN / name)
    assert checkpoint.problems() == []
    expected = load_file(GOLDEN / name / "model.safetensors")
    for found in (checkpoint.load(), checkpoint.map(), dict(checkpoint.iter_tensors())):
        assert found.keys() == expected.keys()
        assert all(same_bits(found[key], expected[key]) for key in expected)


def test_shards_read_as_one_file_does(copy_golden):
    folder = reshard(copy_golden("text-fp8"))
    checkpoint = Checkpoint.open(folder)
    checkpoint.check()
    expected = load_file(GOLDEN / "text-fp8" / "model.safetensors")
    assert all(same_bits(tensor, expected[name]) for name, tensor in checkpoint.load().items())


def test_links_to_the_files_are_followed(copy_golden, tmp_path):
    real = copy_golden("text")
    folder = tmp_path / "linked"
    folder.mkdir()
    for file in ("config.json", "model.safetensors"):
        (folder / file).symlink_to(real / file)
    Checkpoint.open(folder).check()


def test_names_of_the_module_tree_are_read_as_official(copy_golden):
    def rename(tensors):
        for name in list(tensors):
            new = "model.language_model." + name.removeprefix("model.") if name.startswith("model.") else name
            new = "model." + name if name.startswith("vi") else new
            tensors[new] = tensors.pop(name)

    folder = rewrite(copy_golden("vl"), rename)
    checkpoint = Checkpoint.open(folder)
    checkpoint.check()
    expected = load_file(GOLDEN / "vl" / "model.safetensors")
    assert all(same_bits(tensor, expected[name]) for name, tensor in checkpoint.load().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [None, torch.float32, torch.bfloat16])
def test_stored_dtypes_are_kept_or_converted(tmp_path, dtype, wanted):
    checkpoint = Checkpoint.open(draw(tmp_path / "drawn", dtype))
    checkpoint.check()
    expected = load_file(tmp_path / "drawn" / "model.safetensors")
    for name, tensor in checkpoint.load(dtype=wanted).items():
        assert same_bits(tensor, expected[name].to(wanted or dtype))


def test_dequantised_weights_are_q_times_scale():
    stored = load_file(GOLDEN / "text-fp8" / "model.safetensors")
    weights = Checkpoint.open(GOLDEN / "text-fp8").load(dequantise=True, dtype=torch.float32)
    assert set(weights) == {name for name in stored if not name.endswith("_scale_inv")}
    for name, weight in weights.items():
        scale = stored.get(name + "_scale_inv")
        expected = stored[name].float() if scale is None else dequantise(stored[name], scale)
        assert same_bits(weight, expected)
    plain = load_file(GOLDEN / "text" / "model.safetensors")
    name = "model.layers.1.moe.gate_proj.weight"
    torch.testing.assert_close(weights[name], plain[name].float(), rtol=2**-4, atol=1e-3)


def test_dequantised_weights_are_bf16_unless_told_otherwise():
    weights = Checkpoint.open(GOLDEN / "text-fp8").load(dequantise=True)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_fp8_weights_and_scales_keep_their_dtype_when_the_rest_is_converted():
    weights = Checkpoint.open(GOLDEN / "text-fp8").load(dtype=torch.float32)
    assert weights["model.layers.0.self_attn.wq.weight"].dtype == torch.float8_e4m3fn
    assert weights["model.layers.0.self_attn.wq.weight_scale_inv"].dtype == torch.float32
    assert weights["model.norm.weight"].dtype == torch.float32


def test_attention_ffn_and_vision_sides_make_up_the_whole():
    checkpoint = Checkpoint.open(GOLDEN / "vl")
    sides = [checkpoint.load(Part(kinds)) for kinds in (ATTENTION_SIDE, FFN_SIDE, VISION_SIDE)]
    names = [name for side in sides for name in side]
    assert sorted(names) == sorted(checkpoint.tensors)
    assert "model.layers.1.moe.gate.weight" in sides[0]
    assert all(
        re.search(r"\.(mlp|moe|share_expert)\.(gate|up|down)_proj\.weight$", name) for name in sides[1]
    )
    assert "vit_downsampler2.bias" in sides[2]


def test_a_range_of_layers_leaves_out_the_others():
    names = Checkpoint.open(GOLDEN / "text-fp8").load(Part(FFN_SIDE, layers=range(2, 4)))
    assert {name.split(".")[2] for name in names} == {"2", "3"}


@pytest.mark.parametrize("layers", [range(2, 5), range(-1, 2)])
def test_layers_that_do_not_exist_are_refused(layers):
    with pytest.raises(CheckpointError, match=r"expected layers within 0\.\.3, found range"):
        Checkpoint.open(GOLDEN / "text").load(Part(layers=layers))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A block-fp8 checkpoint whose FFNs have several blocks each way, ragged at the end."""
    folder = tmp_path_factory.mktemp("large")
    sizes = {
        "hidden_size": 192,
        "intermediate_size": 640,
        "moe_intermediate_size": 392,
        "share_expert_dim": 384,
    }
    draw(folder / "bf16", num_hidden_layers=2, moe_layers_enum="1", moe_num_experts=4, **sizes)
    Quantisation(folder / "bf16", folder / "fp8").run()
    return folder


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", ["bf16", "fp8"])
def test_loaded_pieces_of_an_ffn_join_to_the_whole(large, name, count):
    checkpoint = Checkpoint.open(large / name)
    whole = checkpoint.load(Part(FFN_SIDE), dequantise=True)
    pieces = [checkpoint.load(Part(FFN_SIDE, slice=Slice(i, count)), dequantise=True) for i in range(count)]
    for key, expected in whole.items():
        joined = torch.cat([piece[key] for piece in pieces], -1 if "down_proj" in key else -2)
        assert joined.equal(expected), key


@pytest.mark.parametrize("count", [2, 3])
def test_mapped_pieces_of_an_fp8_ffn_come_with_their_scales(large, count):
    checkpoint = Checkpoint.open(large / "fp8")
    whole = checkpoint.load(Part(FFN_SIDE), dequantise=True, dtype=torch.float32)
    pieces = [checkpoint.map(Part(FFN_SIDE, slice=Slice(i, count))) for i in range(count)]
    for key, expected in whole.items():
        parts = [dequantise(piece[key], piece[key + "_scale_inv"]) for piece in pieces]
        assert torch.cat(parts, -1 if "down_proj" in key else -2).equal(expected), key


@pytest.mark.parametrize("name", ["bf16", "fp8"])
def test_experts_and_a_slice_combine(large, name):
    checkpoint = Checkpoint.open(large / name)
    key = "model.layers.1.moe.down_proj.weight"
    whole = checkpoint.load(Part(frozenset({Kind.EXPERTS})), dequantise=True)[key]
    part = Part(FFN_SIDE, experts=range(1, 3), slice=Slice(1, 2))
    piece = checkpoint.load(part, dequantise=True)
    assert piece[key].equal(whole[1:3, :, 256:])
    assert piece["model.layers.1.moe.gate_proj.weight"].shape == (2, 392 - 256, 192)


def test_a_piece_of_one_block_is_cut_with_its_scale():
    checkpoint = Checkpoint.open(GOLDEN / "text-fp8")
    key = "model.layers.2.moe.down_proj.weight"
    whole = checkpoint.load(dequantise=True)[key]
    piece = checkpoint.load(Part(slice=Slice(1, 2)), dequantise=True)[key]
    assert piece.equal(whole[..., 32:])


def test_a_missing_tensor_is_named(copy_golden):
    folder = rewrite(copy_golden("text"), lambda t: t.pop("model.layers.2.moe.gate.weight"))
    expected = "model.layers.2.moe.gate.weight: missing: expected BF16 or F16 or F32 [8, 128], found nothing"
    assert problem(folder) == f"{folder}: {expected}"
    with pytest.raises(CheckpointError, match=r"moe\.gate\.weight: missing"):
        Checkpoint.open(folder).load()


def test_a_part_without_the_missing_tensor_can_still_be_read(copy_golden):
    folder = rewrite(copy_golden("text"), lambda t: t.pop("model.layers.2.moe.gate.weight"))
    assert Checkpoint.open(folder).load(Part(FFN_SIDE))


def test_an_extra_tensor_is_named(copy_golden):
    folder = rewrite(copy_golden("text"), lambda t: t.update({"model.layers.9.x": torch.zeros(1)}))
    assert problem(folder).endswith("model.layers.9.x: not expected: the config implies no such tensor")


def test_a_wrong_shape_is_named(copy_golden):
    folder = rewrite(copy_golden("text"), lambda t: t.update({"model.norm.weight": torch.zeros(64)}))
    assert problem(folder).endswith(
        "model.norm.weight: wrong shape: expected BF16 or F16 or F32 [128], found F32 [64]"
    )
    with pytest.raises(CheckpointError, match="wrong shape"):
        Checkpoint.open(folder).load()


def test_a_wrong_dtype_is_named(copy_golden):
    name = "model.layers.0.self_attn.wq.weight"
    folder = rewrite(copy_golden("text-fp8"), lambda t: t.update({name: t[name].bfloat16()}))
    assert problem(folder).endswith(f"{name}: wrong dtype: expected F8_E4M3 [128, 64], found BF16 [128, 64]")


def test_fp8_weights_under_an_unquantised_config_are_refused(copy_golden):
    folder = rewrite_config(copy_golden("text-fp8"), quantization_config=None)
    problems = Checkpoint.open(folder).problems()
    assert any(
        "wq.weight: wrong dtype: expected BF16 or F16 or F32 [128, 64], found F8_E4M3" in p for p in problems
    )


def test_a_missing_scale_is_named(copy_golden):
    name = "model.layers.1.moe.up_proj.weight_scale_inv"
    folder = rewrite(copy_golden("text-fp8"), lambda t: t.pop(name))
    assert problem(folder).endswith(f"{name}: missing: expected F32 [8, 1, 1], found nothing")
    with pytest.raises(CheckpointError, match="scale_inv: missing"):
        Checkpoint.open(folder).load()


def test_the_first_five_of_many_differences_are_shown(copy_golden):
    folder = rewrite_config(copy_golden("text"), hidden_size=256)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder).check()
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    assert lines[-1] == f"... and {len(Checkpoint.open(folder).problems()) - 5} more"


def test_a_torn_file_is_named(copy_golden):
    folder = copy_golden("text")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1_000_000)
    message = refusal(folder)
    assert (
        "model.safetensors: model.layers.1.self_attn.q_proj.weight: torn: expected data up to byte" in message
    )
    assert message.endswith("found a file of 1000000 bytes")


def test_a_missing_shard_is_named(copy_golden):
    folder = reshard(copy_golden("text"))
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert (
        refusal(folder) == f"{folder / 'model-00002-of-00003.safetensors'}: no such file (a shard is missing)"
    )


def test_a_shard_without_a_tensor_that_the_index_promises_is_named(copy_golden):
    folder = reshard(copy_golden("text"))
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = "model-00002-of-00003.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    assert "model-00002-of-00003.safetensors: lm_head.weight: missing" in refusal(folder)


def test_a_tensor_that_the_index_does_not_list_is_named(copy_golden):
    folder = reshard(copy_golden("text"))
    file = folder / "model-00001-of-00003.safetensors"
    save_file(load_file(file) | {"stray": torch.zeros(2)}, file)
    assert problem(folder) == f"{file}: stray: not expected: {INDEX} does not list it"


@pytest.mark.parametrize(
    "file",
    [
        "../model.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "",
        "model.bin",
        "a\0.safetensors",
        3,
        None,
    ],
)
def test_an_index_cannot_name_files_elsewhere(copy_golden, file):
    folder = copy_golden("text")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": file}}))
    message = refusal(folder)
    assert f"{INDEX}: lm_head.weight: expected the name of a safetensors file" in message


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": [1]}, {"weight_map": None}])
def test_an_index_without_a_map_is_refused(copy_golden, index):
    folder = copy_golden("text")
    (folder / INDEX).write_text(json.dumps(index))
    assert "weight_map: expected an object of file names" in refusal(folder)


def test_several_files_without_an_index_are_refused(copy_golden):
    folder = reshard(copy_golden("text"))
    (folder / INDEX).unlink()
    assert "found 3 safetensors files without an index" in refusal(folder)


def test_a_folder_without_weights_is_refused(copy_golden):
    folder = copy_golden("text")
    (folder / "model.safetensors").unlink()
    assert "found no safetensors file" in refusal(folder)


def test_the_same_tensor_under_two_names_is_refused(copy_golden):
    def twice(tensors):
        tensors["model.language_model.norm.weight"] = tensors["model.norm.weight"].clone()

    assert "holds model.norm.weight already" in refusal(rewrite(copy_golden("text"), twice))


def test_a_weight_file_that_is_a_pipe_is_not_waited_for(copy_golden):
    folder = copy_golden("text")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    assert "no such file" in refusal(folder)


def test_a_file_is_not_a_checkpoint():
    assert "expected a checkpoint's folder, found a file" in refusal(GOLDEN / "text" / "config.json")


def test_code_in_a_checkpoint_is_never_run(copy_golden):
    folder = rewrite_config(
        copy_golden("text"), auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    )
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    (folder / "pickle.safetensors").write_bytes(b"")
    Checkpoint.open(folder).load()
    assert not (folder / "ran").exists()
    assert "evil" not in sys.modules


def test_opening_and_checking_need_no_torch():
    code = (
        "import sys; from step3.checkpoint import Checkpoint\n"
        f"Checkpoint.open({str(GOLDEN / 'vl')!r}).check()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_box_that_is_empty_reads_nothing(large):
    part = Part(FFN_SIDE, experts=range(2, 2))
    assert not any("moe" in name for name in Checkpoint.open(large / "fp8").load(part))


def test_unaligned_scales_of_a_foreign_writer_are_read(copy_golden):
    folder = copy_golden("text-fp8")
    stored = read_tensors(folder / "model.safetensors")
    header, data = {}, b""
    for name, tensor in stored.items():
        octets = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        dtype = {4: "F32", 2: "BF16", 1: "F8_E4M3"}[tensor.element_size()]
        span = [len(data), len(data) + len(octets)]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": span}
        data += octets
    text = json.dumps(header).encode()
    write_raw(folder / "model.safetensors", text + b" " * (-len(text) % 4 + 1), data)
    checkpoint = Checkpoint.open(folder)
    assert any(info.offset % 4 for info in checkpoint.tensors.values() if info.dtype == "F32")
    assert all(same_bits(tensor, stored[name]) for name, tensor in checkpoint.load().items())
    with pytest.raises(CheckpointError, match="can be loaded but not mapped"):
        checkpoint.matrices(Part(frozenset({Kind.LM_HEAD})), in_place=True)
    read, is_mapped = checkpoint.matrices(Part())
    assert not is_mapped
    assert all(same_bits(tensor, stored[name]) for name, tensor in read.items())


def test_what_is_aligned_is_mapped(copy_golden):
    folder = copy_golden("text-fp8")
    views, is_mapped = Checkpoint.open(folder).matrices(Part())
    assert is_mapped
    assert all(
        same_bits(view, read_tensors(folder / "model.safetensors")[name]) for name, view in views.items()
    )


def test_tensors_come_in_the_order_of_the_disk(copy_golden):
    checkpoint = Checkpoint.open(reshard(copy_golden("text")))
    places = [
        (checkpoint.tensors[name].file, checkpoint.tensors[name].offset)
        for name, _ in checkpoint.iter_tensors()
    ]
    assert places == sorted(places)


def test_kept_modules_are_read_unquantised(copy_golden):
    folder = copy_golden("text-fp8")
    name = "model.layers.0.self_attn.wq.weight"
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["ignored_layers"] = ["model.layers.0.self_attn.wq"]
    (folder / "config.json").write_text(json.dumps(config))

    def keep(tensors):
        tensors[name] = dequantise(tensors[name], tensors.pop(name + "_scale_inv")).bfloat16()

    rewrite(folder, keep)
    checkpoint = Checkpoint.open(folder)
    checkpoint.check()
    assert checkpoint.load()[name].dtype == torch.bfloat16


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_loading_takes_little_more_memory_than_stays(hundred_megabytes):
    measured = measure("load", hundred_megabytes, cases=[{}, {"dtype": "float32"}])
    assert [stays for stays, _ in measured] == [102796288, 2 * 102796288]
    assert all(peak <= 1.15 * stays for stays, peak in measured), measured


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_loading_fp8_takes_little_more_memory_than_stays(hundred_megabytes, tmp_path):
    Quantisation(hundred_megabytes, tmp_path / "fp8").run()
    cases = [{}, {"dequantise": True}, {"dequantise": True, "dtype": "float32"}]
    measured = measure("load", tmp_path / "fp8", cases=cases)
    assert [stays for stays, _ in measured] == [53525312, 102796288, 2 * 102796288]
    assert all(peak <= 1.15 * stays for stays, peak in measured), measured

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import GOLDEN, draw, reshard, rewrite, rewrite_config, same_bits
from peak_memory import measure
from safetensors.torch import load_file

from step3.checkpoint import Checkpoint, CheckpointError
from step3.checkpoint.block_fp8 import quantise
from step3.checkpoint.quantisation import Quantisation

INDEX = "model.safetensors.index.json"
SHARD = 300_000


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def refusal(*args, **keywords) -> str:
    with pytest.raises(CheckpointError) as caught:
        Quantisation(*args, **keywords).run()
    return str(caught.value)


class Killed(BaseException):
    """Ends a run from within, as no handler may catch it."""


def run_until(share: float, source: Path, target: Path, **keywords) -> None:
    """Start a run and end it when that share of the bytes is done."""
    quantisation = Quantisation(source, target, **keywords)
    left = share * quantisation.total_bytes

    def progress(done: int) -> None:
        nonlocal left
        left -= done
        if left <= 0:
            raise Killed

    with pytest.raises(Killed):
        quantisation.run(progress)


def test_golden_text_becomes_golden_text_fp8_byte_for_byte(tmp_path):
    Quantisation(GOLDEN / "text", tmp_path / "out").run()
    result, golden = contents(tmp_path / "out"), contents(GOLDEN / "text-fp8")
    assert result["model.safetensors"] == golden["model.safetensors"]
    assert json.loads(result["config.json"]) == json.loads(golden["config.json"])
    assert result["tokenizer.json"] == golden["tokenizer.json"]
    assert set(result) == set(golden) - {"golden.json"}


def test_the_vision_side_router_norms_and_embeddings_stay_as_they_are(tmp_path):
    Quantisation(GOLDEN / "vl", tmp_path / "out").run()
    checkpoint = Checkpoint.open(tmp_path / "out")
    checkpoint.check()
    before = load_file(GOLDEN / "vl" / "model.safetensors")
    for name, tensor in checkpoint.load().items():
        if name.endswith("_scale_inv"):
            continue
        if checkpoint.layout[name].quantised:
            assert tensor.dtype == torch.float8_e4m3fn
        else:
            assert same_bits(tensor, before[name])
    unquantised = {spec.kind.value for spec in checkpoint.layout.values() if not spec.quantised}
    assert unquantised == {"embedding", "router", "norms", "lm_head", "vision tower", "projector"}


def test_shards_and_index_agree_and_hold_the_same_tensors(tmp_path, copy_golden):
    Quantisation(
        reshard(Path(shutil.copytree(GOLDEN / "text", tmp_path / "in"))), tmp_path / "out", shard_bytes=SHARD
    ).run()
    files = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    assert len(files) > 3
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    golden = load_file(GOLDEN / "text-fp8" / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in golden.values())
    assert index["weight_map"].keys() == golden.keys()
    for file in files:
        stored = load_file(tmp_path / "out" / file)
        assert {name for name, holder in index["weight_map"].items() if holder == file} == set(stored)
        assert all(same_bits(tensor, golden[name]) for name, tensor in stored.items())
        assert sum(tensor.nbytes for tensor in stored.values()) <= SHARD


def test_pieces_of_a_tensor_give_what_the_whole_gives(tmp_path):
    source = draw(tmp_path / "in", hidden_size=200, intermediate_size=300, moe_intermediate_size=260)
    Quantisation(source, tmp_path / "out", tile_elements=128 * 200).run()
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name, weight in load_file(source / "model.safetensors").items():
        if name + "_scale_inv" in stored:
            q, scale = quantise(weight)
            assert same_bits(stored[name], q), name
            assert same_bits(stored[name + "_scale_inv"], scale), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_float_checkpoints_are_taken_and_keep_their_dtype_elsewhere(tmp_path, dtype):
    Quantisation(draw(tmp_path / "in", dtype), tmp_path / "out").run()
    weights = Checkpoint.open(tmp_path / "out").load()
    assert weights["model.norm.weight"].dtype == dtype
    assert weights["model.layers.0.self_attn.wq.weight"].dtype == torch.float8_e4m3fn


def test_companions_are_copied_without_code(tmp_path, copy_golden):
    source = copy_golden("vl")
    code = {"AutoProcessor": "processing_step3.Step3VLProcessor"}
    rewrite_config(source, auto_map={"AutoConfig": "configuration_step3.Step3VLConfig"})
    written = {
        "preprocessor_config.json": json.dumps({"size": 728, "auto_map": code}),
        "chat_template.jinja": "{{ messages }}",
        "special_tokens_map.json": "{}",
        "processing_step3.py": "print()",
        "tokenizer_tool.py": "print()",
        "optimizer.pt": "x",
    }
    for name, text in written.items():
        (source / name).write_text(text)
    Quantisation(source, tmp_path / "out").run()
    names = set(contents(tmp_path / "out"))
    copied = {
        "preprocessor_config.json",
        "chat_template.jinja",
        "special_tokens_map.json",
        "generation_config.json",
    }
    assert names == copied | {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text()) == {"size": 728}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "auto_map" not in config
    assert config["text_config"] == json.loads((source / "config.json").read_text())["text_config"]


def test_progress_ends_at_the_total(tmp_path):
    quantisation = Quantisation(GOLDEN / "text", tmp_path / "out", shard_bytes=SHARD)
    steps = []
    quantisation.run(steps.append)
    assert sum(steps) == quantisation.total_bytes == 1874688
    assert quantisation.result_bytes == 1072216


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_a_run_that_ends_anywhere_leaves_no_target_and_goes_on(tmp_path, share):
    run_until(share, GOLDEN / "text", tmp_path / "out", shard_bytes=SHARD)
    assert not (tmp_path / "out").exists()
    building = tmp_path / "out.partial" / "checkpoint"
    finished = {file.name: file.stat().st_ino for file in building.glob("*.safetensors")}
    assert bool(finished) == (share > 0.2)
    Quantisation(GOLDEN / "text", tmp_path / "out", shard_bytes=SHARD).run()
    Quantisation(GOLDEN / "text", tmp_path / "straight", shard_bytes=SHARD).run()
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
    inodes = {file.name: file.stat().st_ino for file in (tmp_path / "out").iterdir()}
    assert finished.items() <= inodes.items()
    assert not (tmp_path / "out.partial").exists()


def test_a_killed_process_leaves_no_target_and_the_next_goes_on(tmp_path):
    code = (
        "import os, signal, sys; from step3.checkpoint.quantisation import Quantisation\n"
        "done = []\n"
        "def progress(n):\n"
        "    done.append(n)\n"
        "    if sum(done) > 900_000: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"Quantisation(*sys.argv[1:], shard_bytes={SHARD}).run(progress)\n"
    )
    command = [sys.executable, "-c", code, GOLDEN / "text", tmp_path / "out"]
    assert subprocess.run(command).returncode == -9
    assert not (tmp_path / "out").exists()
    assert any((tmp_path / "out.partial" / "checkpoint").glob("*.unfinished"))
    Quantisation(GOLDEN / "text", tmp_path / "out", shard_bytes=SHARD).run()
    Checkpoint.open(tmp_path / "out").check()
    assert not any((tmp_path / "out").glob("*.unfinished"))


def test_a_finished_shard_that_was_changed_is_refused(tmp_path):
    run_until(0.5, GOLDEN / "text", tmp_path / "out", shard_bytes=SHARD)
    shard = next((tmp_path / "out.partial" / "checkpoint").glob("*.safetensors"))
    with shard.open("r+b") as file:
        file.truncate(1000)
    assert f"{shard}: changed since it was finished" in refusal(
        GOLDEN / "text", tmp_path / "out", shard_bytes=SHARD
    )


def test_another_source_cannot_go_on_with_a_partial_result(tmp_path):
    run_until(0.5, GOLDEN / "text", tmp_path / "out", shard_bytes=SHARD)
    other = draw(tmp_path / "other")
    assert "left by a run on another source" in refusal(other, tmp_path / "out", shard_bytes=SHARD)


def test_a_source_that_changed_meanwhile_is_another_source(tmp_path, copy_golden):
    source = copy_golden("text")
    run_until(0.5, source, tmp_path / "out", shard_bytes=SHARD)
    os.utime(source / "model.safetensors", (1, 1))
    assert "left by a run on another source" in refusal(source, tmp_path / "out", shard_bytes=SHARD)


@pytest.mark.parametrize("where", [".", "checkpoint", "photos"])
def test_a_folder_of_the_users_is_not_built_in(tmp_path, where):
    folder = tmp_path / "out.partial" / where
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    assert "out.partial: not left by a stopped run" in refusal(GOLDEN / "text", tmp_path / "out")
    assert (folder / "thesis.txt").read_text() == "mine"


def test_what_the_user_put_beside_a_partial_result_stays(tmp_path):
    run_until(0.5, GOLDEN / "text", tmp_path / "out", shard_bytes=SHARD)
    (tmp_path / "out.partial" / "thesis.txt").write_text("mine")
    Quantisation(GOLDEN / "text", tmp_path / "out", shard_bytes=SHARD).run()
    Checkpoint.open(tmp_path / "out").check()
    assert [file.name for file in (tmp_path / "out.partial").iterdir()] == ["thesis.txt"]


def test_a_source_named_as_the_partial_result_would_be_is_refused(tmp_path):
    source = shutil.copytree(GOLDEN / "text", tmp_path / "out.partial")
    assert "expected a folder apart from the source" in refusal(source, tmp_path / "out")


def test_two_processes_do_not_write_at_once(tmp_path):
    first = Quantisation(GOLDEN / "text", tmp_path / "out", shard_bytes=SHARD)
    messages = []

    def progress(_: int) -> None:
        if not messages:
            messages.append(refusal(GOLDEN / "text", tmp_path / "out", shard_bytes=SHARD))

    first.run(progress)
    assert messages == [f"{tmp_path / 'out.partial'}: another process is writing here"]


def test_an_existing_target_is_left_alone(tmp_path):
    target = Path(shutil.copytree(GOLDEN / "text-fp8", tmp_path / "out"))
    before = contents(target)
    assert "out: exists already" in refusal(GOLDEN / "text", target)
    assert contents(target) == before
    assert not (tmp_path / "out.partial").exists()


def test_an_existing_checkpoint_is_replaced_when_asked_but_only_at_the_end(tmp_path):
    target = Path(shutil.copytree(GOLDEN / "vl", tmp_path / "out"))
    before = contents(target)
    run_until(1.0, GOLDEN / "text", target, overwrite=True)
    assert contents(target) == before
    Quantisation(GOLDEN / "text", target, overwrite=True).run()
    assert "golden.json" not in contents(target)
    Checkpoint.open(target).check()
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_what_is_no_checkpoint_is_never_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert "not a Step3 checkpoint, so it is not replaced" in refusal(
        GOLDEN / "text", tmp_path / "out", overwrite=True
    )
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_a_target_that_appears_during_the_run_is_left_alone(tmp_path):
    def progress(_: int) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "new").write_text("mine")

    with pytest.raises(CheckpointError, match="exists already"):
        Quantisation(GOLDEN / "text", tmp_path / "out").run(progress)
    assert (tmp_path / "out" / "new").read_text() == "mine"


def test_a_run_killed_between_the_renames_is_finished_by_the_next(tmp_path, monkeypatch):
    target = Path(shutil.copytree(GOLDEN / "vl", tmp_path / "out"))
    rename = Path.rename

    def die_at_the_second(self, to):
        if to == target:
            raise Killed
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", die_at_the_second)
    with pytest.raises(Killed):
        Quantisation(GOLDEN / "text", target, overwrite=True).run()
    monkeypatch.undo()
    assert not target.exists()
    Quantisation(GOLDEN / "text", target, overwrite=True).run()
    Checkpoint.open(target).check()
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_an_empty_target_is_used(tmp_path):
    (tmp_path / "out").mkdir()
    Quantisation(GOLDEN / "text", tmp_path / "out").run()
    Checkpoint.open(tmp_path / "out").check()


@pytest.mark.parametrize("target", ["in", "in/out", "."])
def test_source_and_target_must_lie_apart(tmp_path, target):
    shutil.copytree(GOLDEN / "text", tmp_path / "in")
    message = refusal(tmp_path / "in", tmp_path / target, overwrite=True)
    assert "expected a folder apart from the source" in message


@pytest.mark.parametrize(
    "make", [lambda path: path.write_text("x"), lambda path: path.symlink_to("/nowhere")]
)
def test_a_target_that_is_a_file_or_link_is_refused(tmp_path, make):
    make(tmp_path / "out")
    assert "found a link or a file" in refusal(GOLDEN / "text", tmp_path / "out")


def test_a_quantised_source_is_refused(tmp_path):
    assert "expected unquantised weights, found block-fp8" in refusal(GOLDEN / "text-fp8", tmp_path / "out")


def test_an_incomplete_source_is_refused_before_anything_is_written(tmp_path, copy_golden):
    source = rewrite(copy_golden("text"), lambda t: t.pop("lm_head.weight"))
    assert "lm_head.weight: missing" in refusal(source, tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_weights_that_are_not_finite_are_named(tmp_path, copy_golden):
    name = "model.layers.1.moe.up_proj.weight"
    source = rewrite(copy_golden("text"), lambda t: t[name][3, 2].fill_(float("nan")))
    assert f"{source / 'model.safetensors'}: {name}: expected finite weights" in refusal(
        source, tmp_path / "out"
    )


def test_a_disk_that_is_too_small_is_noticed_first(tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "expected 1,072,216 bytes of free disk space, found 1,000,000" in refusal(
        GOLDEN / "text", tmp_path / "out"
    )
    assert not list((tmp_path / "out.partial" / "checkpoint").iterdir())


def test_a_disk_that_fills_up_is_an_error_one_can_mend(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    message = refusal(GOLDEN / "text", tmp_path / "out")
    assert "No space left on device" in message
    assert "run again to go on" in message


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_follows_the_tile_not_the_tensor(tmp_path, hundred_megabytes):
    ((total, peak),) = measure(
        "quantise", hundred_megabytes, tmp_path / "out", cases=[{"tile_elements": 1 << 19}]
    )
    largest_as_float32 = 4 * 12 * 1024 * 1024
    assert total == 102796288
    assert peak < 0.7 * largest_as_float32

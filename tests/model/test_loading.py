"""`from_pretrained`: any way of asking for it gives the same network, and what is wrong is named."""

import json
import logging
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from golden import GOLDEN
from safetensors.torch import load_file, save_file
from small import pictures, prompt, text_model, tokens, vl_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from step3.errors import Step3Error
from step3.model.checkpoint_names import MODEL_CARD_KEY_MAPPING, TO_MODULE_TREE
from step3.model.modeling_step3_vl import Step3VLForConditionalGeneration


def load(folder: Path, **kwargs: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto", **kwargs)


def changed(tmp_path: Path, checkpoint: str, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of a golden checkpoint with other tensors."""
    folder = tmp_path / checkpoint
    shutil.copytree(GOLDEN / checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def same(one: Any, other: Any) -> bool:
    """Whether two networks hold the same bits."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name].float(), second[name].float())
        for name in first
    )


@pytest.mark.parametrize(
    "options",
    [
        {"key_mapping": MODEL_CARD_KEY_MAPPING},
        {"low_cpu_mem_usage": True},
        {"device_map": "auto"},
        {"device_map": "cpu"},
        {"trust_remote_code": True},
        {"attn_implementation": "eager"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_way_of_loading_gives_the_same_tensors(options: dict[str, Any]) -> None:
    model, info = load(GOLDEN / "vl", output_loading_info=True, **options)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert same(model, load(GOLDEN / "vl"))
    assert model.dtype == torch.bfloat16
    assert not model.training


def test_key_mapping_of_the_user_is_followed(tmp_path: Path) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        tensors["output.weight"] = tensors.pop("lm_head.weight")

    folder = changed(tmp_path, "vl", rename)
    mapping = {**TO_MODULE_TREE, r"^output\.": "lm_head."}
    model = load(folder, key_mapping=mapping)
    assert same(model, load(GOLDEN / "vl"))
    # Saved, it is an official checkpoint nevertheless.
    model.save_pretrained(tmp_path / "saved")
    assert (
        load_file(tmp_path / "saved" / "model.safetensors").keys()
        == load_file(GOLDEN / "vl" / "model.safetensors").keys()
    )


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_layers_offloaded_to_memory_or_disk_compute_the_same(place: str, tmp_path: Path) -> None:
    """As `device_map="auto"` does where the accelerator is too small."""
    model, offloaded = vl_model(), vl_model()
    if place == "cpu":
        cpu_offload(offloaded, torch.device("cpu"))
    else:
        disk_offload(offloaded, str(tmp_path), torch.device("cpu"))
    assert {p.device.type for p in offloaded.parameters()} == {"meta"}
    given = {"input_ids": torch.tensor([prompt(2, [1], 3)]), **pictures(1)}
    with torch.no_grad():
        assert torch.equal(offloaded(**given).logits, model(**given).logits)


def test_block_fp8_offloaded_to_memory_computes_the_same() -> None:
    offloaded, ids = load(GOLDEN / "text-fp8"), tokens(1, 9)
    cpu_offload(offloaded, torch.device("cpu"))
    assert torch.equal(offloaded(input_ids=ids).logits, load(GOLDEN / "text-fp8")(input_ids=ids).logits)


def test_network_on_the_meta_device_takes_no_memory_and_is_filled_later() -> None:
    config = load(GOLDEN / "vl").config
    with torch.device("meta"):
        empty = Step3VLForConditionalGeneration(config)
    assert {tensor.device.type for tensor in empty.state_dict().values()} == {"meta"}
    empty.load_state_dict(load(GOLDEN / "vl").state_dict(), assign=True)
    ids = tokens(1, 9)
    with torch.no_grad():
        assert torch.equal(empty(input_ids=ids).logits, load(GOLDEN / "vl")(input_ids=ids).logits)


def test_scales_of_block_fp8_stay_float32_in_a_half_precision_network() -> None:
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "text-fp8", torch_dtype=torch.float16)
    by_kind: dict[str, set[torch.dtype]] = {}
    for name, parameter in model.named_parameters():
        kind = (
            "scale"
            if name.endswith("scale_inv")
            else "fp8"
            if name.replace("weight", "weight_scale_inv") in dict(model.named_parameters())
            else "plain"
        )
        by_kind.setdefault(kind, set()).add(parameter.dtype)
    assert by_kind == {"scale": {torch.float32}, "fp8": {torch.float8_e4m3fn}, "plain": {torch.float16}}


def test_layers_that_a_block_fp8_checkpoint_leaves_plain_are_plain(tmp_path: Path) -> None:
    plain = load_file(GOLDEN / "text" / "model.safetensors")

    def unquantise(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "share_expert" in name]:
            del tensors[name]
        tensors.update({name: tensor for name, tensor in plain.items() if "share_expert" in name})

    folder = changed(tmp_path, "text-fp8", unquantise)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"] = ["share_expert"]
    (folder / "config.json").write_text(json.dumps(config))

    model, info = load(folder, output_loading_info=True)

    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(model.model.layers[1].share_expert.up_proj) is torch.nn.Linear
    assert model.model.layers[1].moe.up_proj.weight.dtype == torch.float8_e4m3fn
    model.save_pretrained(tmp_path / "saved")
    saved, given = (load_file(path / "model.safetensors") for path in (tmp_path / "saved", folder))
    assert saved.keys() == given.keys()
    assert all(torch.equal(saved[name].float(), given[name].float()) for name in given)
    assert (
        json.loads((tmp_path / "saved" / "config.json").read_text())["quantization_config"]
        == config["quantization_config"]
    )


class TestTensors:
    def test_missing_one_is_named_and_drawn(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        folder = changed(
            tmp_path, "vl", lambda tensors: tensors.pop("vision_model.embeddings.class_embedding")
        )
        with caplog.at_level(logging.WARNING), heard_transformers(caplog):
            model, info = load(folder, output_loading_info=True)
        assert set(info["missing_keys"]) == {"model.vision_model.embeddings.class_embedding"}
        assert "class_embedding" in caplog.text
        assert model.model.vision_model.embeddings.class_embedding.isfinite().all()

    def test_extra_one_is_named(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        folder = changed(tmp_path, "text", lambda tensors: tensors.update(surplus=torch.ones(2)))
        with caplog.at_level(logging.WARNING), heard_transformers(caplog):
            _, info = load(folder, output_loading_info=True)
        assert set(info["unexpected_keys"]) == {"surplus"}
        assert "surplus" in caplog.text

    def test_misshapen_one_is_named(self, tmp_path: Path) -> None:
        folder = changed(
            tmp_path, "text", lambda tensors: tensors.update({"model.norm.weight": torch.ones(7).bfloat16()})
        )
        with pytest.raises(RuntimeError, match=r"size mismatch|ignore_mismatched_sizes"):
            load(folder)

    def test_missing_scale_is_an_error(self, tmp_path: Path) -> None:
        name = "model.layers.1.moe.up_proj.weight_scale_inv"
        folder = changed(tmp_path, "text-fp8", lambda tensors: tensors.pop(name))
        with pytest.raises(Step3Error, match=rf"text-fp8: no {name} \(1 scales missing\)"):
            load(folder)

    def test_scales_that_the_config_does_not_announce_are_an_error(self, tmp_path: Path) -> None:
        folder = changed(tmp_path, "text-fp8", lambda tensors: None)
        config = json.loads((folder / "config.json").read_text())
        del config["quantization_config"]
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(Step3Error, match=r"text-fp8: unexpected model\..* not quantised"):
            load(folder)


@contextmanager
def heard_transformers(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Lets pytest hear Transformers' logger, which does not propagate."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        yield
    finally:
        logger.removeHandler(caplog.handler)


class Hostile:
    """Unpickled, it leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    model = text_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    with pytest.raises(OSError, match="safetensors"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()

"""What `save_pretrained` writes: official names and layout, the same bytes, the published config fields."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import disk_offload
from golden import GOLDEN
from safetensors.torch import load_file
from small import pictures, prompt, tokens, vl_model
from transformers import AutoConfig, AutoModelForCausalLM

from step3.checkpoint import Checkpoint

CHECKPOINTS = ("text", "text-fp8", "vl")

OFFICIAL_NAMES = re.compile(
    r"""model\.embed_tokens\.weight | model\.norm\.weight | lm_head\.weight
    | model\.layers\.\d+\.(input_layernorm|post_attention_layernorm)\.weight
    | model\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|wq|o_proj|inter_norm)\.weight
    | model\.layers\.\d+\.(mlp|moe|share_expert)\.(gate_proj|up_proj|down_proj)\.weight
    | model\.layers\.\d+\.moe\.gate\.weight
    | vision_model\.embeddings\.(class_embedding|patch_embedding\.(weight|bias)|position_embedding\.weight)
    | vision_model\.transformer\.layers\.\d+
      \.(self_attn\.(qkv_proj|out_proj)|layer_norm1|layer_norm2|mlp\.(fc1|fc2))\.(weight|bias)
    | (vit_downsampler|vit_downsampler2)\.(weight|bias) | vit_large_projector\.weight""",
    re.VERBOSE,
)


def load(checkpoint: str, **kwargs: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(GOLDEN / checkpoint, torch_dtype="auto", **kwargs)


def raw(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Every tensor of a folder as it lies on disk: dtype, shape, bytes."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                assert name not in tensors
                tensors[name] = (
                    entry["dtype"],
                    entry["shape"],
                    data[8 + length + start : 8 + length + end],
                )
    return tensors


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_every_tensor_comes_back_byte_for_byte(checkpoint: str, tmp_path: Path) -> None:
    load(checkpoint).save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert raw(tmp_path) == raw(GOLDEN / checkpoint)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_shards_hold_the_same_tensors_and_their_index_says_where(checkpoint: str, tmp_path: Path) -> None:
    load(checkpoint).save_pretrained(tmp_path, max_shard_size="500KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert raw(tmp_path) == raw(GOLDEN / checkpoint)
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / file)
    assert set(index["weight_map"]) == set(raw(tmp_path))

    again = AutoModelForCausalLM.from_pretrained(tmp_path, torch_dtype="auto")
    for (name, one), other in zip(load(checkpoint).named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one.float(), other.float()), name


def test_offloaded_network_is_saved_whole(tmp_path: Path) -> None:
    model = load("vl")
    disk_offload(model, str(tmp_path / "offloaded"), torch.device("cpu"))
    model.hf_device_map = {"": "disk"}
    model.save_pretrained(tmp_path / "saved")
    assert raw(tmp_path / "saved") == raw(GOLDEN / "vl")


def test_fresh_network_is_saved_under_the_official_names(tmp_path: Path) -> None:
    vl_model().save_pretrained(tmp_path)
    names = set(raw(tmp_path))
    assert len(names) == len(vl_model().state_dict())
    assert not [name for name in names if not OFFICIAL_NAMES.fullmatch(name)]


def test_headless_network_is_saved_under_the_official_names(tmp_path: Path) -> None:
    model = vl_model()
    model.model.save_pretrained(tmp_path)
    assert set(raw(tmp_path)) == {n for n in names_of(model, tmp_path / "whole") if n != "lm_head.weight"}


def names_of(model: Any, folder: Path) -> set[str]:
    model.save_pretrained(folder)
    return set(raw(folder))


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_names_shapes_and_dtypes_are_those_of_the_layout(checkpoint: str, tmp_path: Path) -> None:
    load(checkpoint).save_pretrained(tmp_path)
    Checkpoint.open(tmp_path).check()


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_config_keeps_the_published_fields_and_adds_no_loading_options(
    checkpoint: str, tmp_path: Path
) -> None:
    load(checkpoint).save_pretrained(tmp_path)
    published = json.loads((GOLDEN / checkpoint / "config.json").read_text())
    written = json.loads((tmp_path / "config.json").read_text())

    def missing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
        return [
            name
            for name, value in before.items()
            if (
                missing(value, after.get(name, {}))
                if isinstance(value, dict)
                else after.get(name, ...) != value
            )
        ]

    assert missing(published, written) == []
    text = (tmp_path / "config.json").read_text()
    for ours in ("dequantise", "block_fp8", '"dtype"', "rope_parameters", "auto_map", "_attn"):
        assert ours not in text


def test_config_of_the_published_size_survives_a_round_trip(tmp_path: Path) -> None:
    folder = GOLDEN.parent / "published"
    config = AutoConfig.from_pretrained(folder)
    config.save_pretrained(tmp_path)
    published, written = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path))
    for part in ("text_config", "vision_config"):
        assert published[part].items() <= written[part].items()
    again = AutoConfig.from_pretrained(tmp_path)
    passing = {"transformers_version": None, "_name_or_path": None}
    assert {**again.to_dict(), **passing} == {**config.to_dict(), **passing}


def test_block_fp8_of_a_network_with_eyes_comes_back_with_its_config_at_the_top(tmp_path: Path) -> None:
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [4, 8]}
    model = vl_model(quantization_config=quantization)
    model.save_pretrained(tmp_path / "first")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "first", torch_dtype="auto")
    again.save_pretrained(tmp_path / "second")

    assert raw(tmp_path / "second") == raw(tmp_path / "first")
    dtypes = {name: dtype for name, (dtype, _, _) in raw(tmp_path / "second").items()}
    assert dtypes["model.layers.1.moe.up_proj.weight"] == "F8_E4M3"
    assert dtypes["model.layers.1.moe.up_proj.weight_scale_inv"] == "F32"
    written = json.loads((tmp_path / "second" / "config.json").read_text())
    assert written["quantization_config"] == quantization
    assert "quantization_config" not in written["text_config"]
    given = {"input_ids": torch.tensor([prompt(2, [1], 3)]), **pictures(1)}
    assert torch.equal(again(**given).logits, model(**given).logits)


class TestDequantise:
    def test_on_loading_gives_trainable_weights_that_compute_the_same(self) -> None:
        quantised = load("text-fp8")
        plain = load("text-fp8", dequantise=True)
        ids = tokens(1, 9)
        assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}
        assert all(p.requires_grad for p in plain.parameters())
        with torch.no_grad():
            assert torch.equal(plain(input_ids=ids).logits, quantised(input_ids=ids).logits)
        plain(input_ids=ids, labels=ids).loss.backward()
        assert plain.model.layers[1].moe.up_proj.weight.grad.abs().max() > 0

    def test_saved_network_is_a_plain_checkpoint(self, tmp_path: Path) -> None:
        plain = load("text-fp8", dequantise=True)
        plain.save_pretrained(tmp_path)
        assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
        assert {dtype for dtype, _, _ in raw(tmp_path).values()} == {"BF16"}
        assert set(raw(tmp_path)) == set(raw(GOLDEN / "text"))
        again = AutoModelForCausalLM.from_pretrained(tmp_path, torch_dtype="auto")
        assert torch.equal(again(input_ids=tokens(1, 9)).logits, plain(input_ids=tokens(1, 9)).logits)

    def test_of_a_plain_network_does_nothing(self) -> None:
        before, after = load("text"), load("text", dequantise=True)
        for one, other in zip(before.parameters(), after.parameters(), strict=True):
            assert torch.equal(one, other)


def test_network_saved_after_resizing_its_vocabulary_loads(tmp_path: Path) -> None:
    model = vl_model()
    model.resize_token_embeddings(48, mean_resizing=False)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, torch_dtype=torch.float32)
    given = {"input_ids": torch.tensor([[*prompt(2, [1], 3), 47]]), **pictures(1)}
    assert torch.equal(again(**given).logits, model(**given).logits)

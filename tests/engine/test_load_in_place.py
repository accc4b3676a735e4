"""`load="mmap"`: the weights stay in their files, and the answers stay what they are."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_requests import GOLDEN, golden_cases, golden_picture, make_llm
from safetensors.torch import load_file, save_file

from step3 import LLM, SamplingParams
from step3.engine import engine as engine_module
from step3.engine.config import EngineError
from step3.errors import Step3Error
from step3.ffn import shard as shard_module
from step3.kernels.cpu import LEVELS, open_library
from step3.kernels.cpu.library import supported_levels

PARAMS = SamplingParams(temperature=0, max_tokens=8, logprobs=5)
needs_kernels = pytest.mark.skipif(open_library() is None, reason="the CPU kernels are not there")


def answers(llm: LLM, prompts: list[Any]) -> list[Any]:
    outputs = llm.generate(prompts, PARAMS, use_tqdm=False)
    return [(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in outputs]


@pytest.mark.parametrize("level", list(LEVELS))
@pytest.mark.parametrize("checkpoint", ["text", "text-fp8"])
def test_answers_are_those_of_packed_weights(
    monkeypatch: pytest.MonkeyPatch, checkpoint: str, level: str
) -> None:
    if level not in supported_levels() or (library := open_library(level)) is None:
        pytest.skip(f"no kernels for {level} here")
    for module in (engine_module, shard_module):
        monkeypatch.setattr(module, "open_library", lambda: library)
    prompts = [{"prompt_token_ids": case["prompt_token_ids"]} for case in golden_cases(checkpoint)]
    packed, mapped = (
        make_llm(checkpoint, dtype="bfloat16", load=load, max_num_batched_tokens=64)
        for load in ("packed", "mmap")
    )
    assert answers(mapped, prompts) == answers(packed, prompts)


@needs_kernels
def test_a_model_that_sees() -> None:
    prompt = {"prompt": "<im_patch> What?", "multi_modal_data": {"image": golden_picture(90, 70, 1)}}
    packed, mapped = (make_llm("vl", dtype="bfloat16", load=load) for load in ("packed", "mmap"))
    assert answers(mapped, [prompt]) == answers(packed, [prompt])


@needs_kernels
def test_mapped_weights_leave_the_budget_to_the_kv_cache() -> None:
    packed, mapped = (make_llm("text", dtype="bfloat16", load=load).engine for load in ("packed", "mmap"))
    assert mapped.memory.mapped == mapped.memory.weights == pytest.approx(packed.memory.weights, rel=0.05)
    assert packed.memory.mapped == 0
    assert "(mapped files)" in str(mapped.memory)
    assert "(mapped files)" not in str(packed.memory)


@pytest.mark.parametrize("options", [{"dtype": "float32"}, {"dtype": "bfloat16", "block_size": 8}])
def test_says_why_the_kernels_cannot_compute(options: dict[str, Any]) -> None:
    reason = "dtype is float32" if options["dtype"] == "float32" else "block_size = 8"
    with pytest.raises(EngineError, match=f"load = 'mmap' is for the CPU kernels.*{reason}"):
        make_llm("text", load="mmap", **options)


def test_an_unknown_way_to_load() -> None:
    with pytest.raises(EngineError, match="load must be one of packed, mmap, found 'lazy'"):
        make_llm("text", load="lazy")


def change_file(folder: Path, dtype: torch.dtype | None = None, cut: int = 0) -> Path:
    """A copy of the golden text model with other weights, or with fewer bytes."""
    shutil.copytree(GOLDEN / "text", folder)
    file = folder / "model.safetensors"
    if dtype is not None:
        save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - cut)
    return folder


@needs_kernels
def test_weights_of_another_dtype_cannot_stay_in_place(tmp_path: Path) -> None:
    folder = change_file(tmp_path / "model", torch.float32)
    with pytest.raises(
        Step3Error,
        match=r"embed_tokens.weight: weights that stay in place must be BF16 or F8_E4M3, found F32",
    ):
        LLM(str(folder), dtype="bfloat16", load="mmap", max_model_len=64, quiet=True)


@needs_kernels
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    folder = change_file(tmp_path / "model", cut=100)
    with pytest.raises(Step3Error, match=r"torn: expected data up to byte \d+, found a file of \d+ bytes"):
        LLM(str(folder), dtype="bfloat16", load="mmap", max_model_len=64, quiet=True)


@needs_kernels
def test_the_files_are_not_written_to(tmp_path: Path) -> None:
    folder = change_file(tmp_path / "model")
    file = folder / "model.safetensors"
    before = file.read_bytes()
    llm = LLM(str(folder), dtype="bfloat16", load="mmap", max_model_len=64, quiet=True)
    answers(llm, [{"prompt_token_ids": [5, 6, 7]}])
    assert file.read_bytes() == before

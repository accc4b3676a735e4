"""Options of the engine, and where a model is found."""

from pathlib import Path
from typing import Any

import pytest
import torch

from step3.engine.config import EngineConfig, EngineError, find_model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs must be a whole number from 1"),
        ({"max_num_seqs": 1.5}, "max_num_seqs must be a whole number from 1"),
        ({"max_model_len": -5}, "max_model_len must be a whole number from 1"),
        ({"block_size": True}, "block_size must be a whole number from 1"),
        ({"kv_cache_memory_bytes": 0}, "kv_cache_memory_bytes must be"),
        ({"dtype": "int8"}, "dtype must be one of auto, float32"),
        ({"kv_cache_dtype": "fp4"}, "kv_cache_dtype must be one of"),
        ({"max_num_seqs": 64, "max_num_batched_tokens": 32}, "must be at least max_num_seqs = 64"),
        ({"gpu_memory_utilization": 0}, "gpu_memory_utilization must be a number over 0 up to 1"),
        ({"gpu_memory_utilization": float("nan")}, "gpu_memory_utilization must be a number over 0"),
        ({"limit_mm_per_prompt": {"video": 1}}, 'must look like {"image": 4}'),
        ({"limit_mm_per_prompt": {"image": -1}}, 'must look like {"image": 4}'),
        ({"speculative_config": "ngram"}, "speculative_config must look like"),
        ({"speculative_config": {"method": "eagle"}}, "speculative_config must look like"),
        ({"speculative_config": {"num_tokens": 3}}, "no option 'num_tokens': there are method, num_spec"),
        (
            {"speculative_config": {"num_speculative_tokens": 0}},
            "must be a whole number from 1 to 64, found 0",
        ),
        ({"max_model_length": 5}, "no option 'max_model_length': did you mean max_model_len?"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size can only be 1 here, found 2"),
    ],
)
def test_refuses_what_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError) as error:
        EngineConfig.from_options(options)
    assert message in str(error.value)


def test_takes_options_of_vllm_that_change_nothing() -> None:
    options = {"trust_remote_code": True, "enforce_eager": True, "tensor_parallel_size": 1}
    assert EngineConfig.from_options({**options, "swap_space": 4}) == EngineConfig()
    assert EngineConfig.from_options({"limit_mm_per_prompt": {"image": 2, "video": 0}}).max_pictures == 2


@pytest.mark.parametrize(
    ("given", "name"), [(torch.bfloat16, "bfloat16"), ("half", "float16"), ("float", "float32")]
)
def test_knows_the_names_of_dtypes(given: Any, name: str) -> None:
    assert EngineConfig.from_options({"dtype": given}).dtype == name


def test_finds_a_folder(tmp_path: Path) -> None:
    assert find_model(EngineConfig(model=str(tmp_path))) == tmp_path


def test_without_a_model_it_is_the_bundled_one() -> None:
    from step3.nano.architecture import BUNDLED

    assert find_model(EngineConfig()) == BUNDLED


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "nowhere"])
def test_says_that_a_folder_is_missing(model: str) -> None:
    with pytest.raises(EngineError, match="no such folder"):
        find_model(EngineConfig(model=model))

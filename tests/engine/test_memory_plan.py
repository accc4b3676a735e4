"""How a budget becomes KV blocks."""

from pathlib import Path
from typing import Any

import pytest
import torch

from step3.checkpoint import read_config
from step3.engine import memory
from step3.engine.config import EngineConfig, EngineError
from step3.engine.memory import MemoryPlan, open_device, plan_memory

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
BLOCK_BYTES = 4 * 2 * 16 * 32 * 2  # layers, keys and values, tokens, head_dim, bytes


def plan(weights: int = 0, mapped: int = 0, **options: Any) -> MemoryPlan:
    config = EngineConfig(**{"max_num_seqs": 4, "max_num_batched_tokens": 64, **options})
    sizes = read_config(GOLDEN / "text").text
    return plan_memory(config, sizes, 65536, weights, torch.bfloat16, mapped)


def test_a_block_has_keys_and_values_of_all_layers() -> None:
    assert plan(kv_cache_memory_bytes=1 << 20, max_model_len=64).block_bytes == BLOCK_BYTES


def test_uses_what_is_given() -> None:
    got = plan(kv_cache_memory_bytes=10 * BLOCK_BYTES + 5, max_model_len=64)
    assert (got.num_blocks, got.kv_cache) == (10, 10 * BLOCK_BYTES)


def test_takes_no_more_than_can_be_of_use() -> None:
    assert plan(kv_cache_memory_bytes=1 << 30, max_model_len=64).num_blocks == 4 * 4


def test_fp8_halves_a_block() -> None:
    sizes = read_config(GOLDEN / "text").text
    config = EngineConfig(max_model_len=64, kv_cache_memory_bytes=1 << 20)
    assert plan_memory(config, sizes, 65536, 0, torch.float8_e4m3fn).block_bytes == BLOCK_BYTES // 2


def test_weights_and_activations_come_off_the_part_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_memory", lambda: 100 << 20)
    few = plan(weights=20 << 20, gpu_memory_utilization=0.5, max_num_seqs=64)
    more = plan(weights=10 << 20, gpu_memory_utilization=0.5, max_num_seqs=64)
    assert more.num_blocks - few.num_blocks == pytest.approx((10 << 20) / BLOCK_BYTES, abs=1)


def test_mapped_weights_take_nothing_from_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_memory", lambda: 100 << 20)
    none = plan(gpu_memory_utilization=0.5)
    assert plan(weights=1 << 40, mapped=1 << 40, gpu_memory_utilization=0.5).num_blocks == none.num_blocks


def test_a_budget_that_cannot_work_says_what_would() -> None:
    with pytest.raises(EngineError) as error:
        plan(kv_cache_memory_bytes=3 * BLOCK_BYTES, max_model_len=64)
    assert f"({4 * BLOCK_BYTES:,} bytes)" in str(error.value)
    assert "set max_model_len to at most 48" in str(error.value)


def test_without_a_wish_the_longest_that_fits_is_chosen() -> None:
    assert plan(kv_cache_memory_bytes=3 * BLOCK_BYTES).max_model_len == 48


def test_weights_that_fill_the_memory_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_memory", lambda: 100 << 20)
    with pytest.raises(EngineError, match="what gpu_memory_utilization leaves"):
        plan(weights=90 << 20)


def test_more_positions_than_the_model_has_are_an_error() -> None:
    with pytest.raises(EngineError, match="more than the 65536 positions"):
        plan(max_model_len=70000)


def test_says_where_the_memory_goes() -> None:
    text = str(plan(weights=3 << 30, kv_cache_memory_bytes=10 * BLOCK_BYTES, max_model_len=64))
    assert "weights 3.0 GiB" in text
    assert "160 tokens in 10 blocks, 2.5 sequences of 64" in text


@pytest.mark.parametrize("name", ["abacus", "cuda:99", ""])
def test_a_device_that_is_not_there_is_an_error(name: str) -> None:
    with pytest.raises(EngineError, match=f"device {name!r} cannot be used here"):
        open_device(name)

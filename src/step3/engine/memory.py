"""What an engine's memory goes to, and how many KV blocks a budget leaves."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from step3.checkpoint import TextSizes
from step3.engine.config import EngineConfig, EngineError
from step3.engine.kv_store import bytes_per_block

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class MemoryPlan:
    """Where the memory goes, in bytes.

    Attributes:
        mapped: of the weights, what stays in its files and takes no memory that cannot be given back.
        activations: an estimate of the most that a step needs.
        max_model_len: longest prompt and answer together, in tokens.
    """

    weights: int
    activations: int
    num_blocks: int
    block_size: int
    block_bytes: int
    max_model_len: int
    mapped: int = 0

    @property
    def kv_cache(self) -> int:
        return self.num_blocks * self.block_bytes

    def __str__(self) -> str:
        tokens = self.num_blocks * self.block_size
        where = " (mapped files)" if self.mapped else ""
        return (
            f"memory: weights {_size(self.weights)}{where}, KV cache {_size(self.kv_cache)} "
            f"({tokens:,} tokens in {self.num_blocks:,} blocks, {tokens / self.max_model_len:.1f} sequences "
            f"of {self.max_model_len:,}), activations about {_size(self.activations)}"
        )


def plan_memory(
    config: EngineConfig,
    sizes: TextSizes,
    max_positions: int,
    weights: int,
    dtype: torch.dtype,
    mapped: int = 0,
) -> MemoryPlan:
    """Divides the budget: what weights and activations leave is for KV blocks, as many as can be of use.

    Args:
        max_positions: longest context that the model was made for.
        weights: bytes of all weights.
        dtype: of keys and values.
        mapped: bytes of the weights that stay in mapped files; they leave the budget alone.

    Raises:
        EngineError: the budget does not hold one sequence of `max_model_len`; says what would.
    """
    block_bytes = bytes_per_block(sizes, config.block_size, dtype)
    activations = _activations(config, sizes)
    longest = config.max_model_len or max_positions
    if longest > max_positions:
        raise EngineError(
            f"max_model_len = {longest} is more than the {max_positions} positions of the model's config"
        )
    if config.kv_cache_memory_bytes is not None:
        budget, source = config.kv_cache_memory_bytes, "kv_cache_memory_bytes"
    else:
        budget = _budget(config, weights - mapped + activations)
        source = "what gpu_memory_utilization leaves beside weights and activations"
    per_sequence = -(-longest // config.block_size)
    blocks = min(budget // block_bytes, per_sequence * config.max_num_seqs)
    if blocks < per_sequence and config.max_model_len is None and blocks > 0:
        longest = blocks * config.block_size
    elif blocks < per_sequence:
        raise EngineError(
            f"the KV cache of one sequence of {longest:,} tokens takes {_size(per_sequence * block_bytes)} "
            f"({per_sequence * block_bytes:,} bytes), but {source} is {_size(max(0, budget))}: give it more, "
            f"or set max_model_len to at most {max(0, budget) // block_bytes * config.block_size:,}"
        )
    return MemoryPlan(weights, activations, int(blocks), config.block_size, block_bytes, longest, mapped)


def open_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        EngineError: there is none.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    # torch raises what it likes: AssertionError where it was built without CUDA.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise EngineError(f"device {name!r} cannot be used here: {reason}") from None
    return device


def _budget(config: EngineConfig, taken: int) -> int:
    """What is left for the KV cache beside `taken` bytes."""
    device = torch.device(config.device)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        part = config.gpu_memory_utilization or 0.9
    else:
        total = host_memory()
        part = config.gpu_memory_utilization or 0.5
    return int(total * part) - taken


def host_memory() -> int:
    """Bytes that this process may use: the machine's memory, or its container's limit if that is less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in _CGROUP_LIMITS:
        try:
            memory = min(memory, int(file.read_text()))
        except (OSError, ValueError):
            continue
    return memory


def _activations(config: EngineConfig, sizes: TextSizes) -> int:
    """Rows of the widest places of a layer, logits with a copy for sampling, and one expanded matrix."""
    heads = sizes.num_attention_heads * sizes.head_dim
    widest = max(sizes.intermediate_size, sizes.moe_top_k * sizes.moe_intermediate_size)
    # The CPU kernels hold each chosen expert's rows at once, before and after.
    hidden = max(8, 3 + 2 * (sizes.moe_top_k + 1))
    row = hidden * sizes.hidden_size + 4 * heads + 3 * widest
    matrix = max(heads, 2 * sizes.intermediate_size, 2 * sizes.moe_intermediate_size) * sizes.hidden_size
    logits = 3 * config.max_num_seqs * sizes.vocab_size
    return 4 * (config.max_num_batched_tokens * row + matrix + logits)


def _size(count: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1024:.0f} KiB"

"""Linear layers as checkpoints store them: plain or block-fp8, one matrix or one for each expert.

Block-fp8 weights stay as stored and are multiplied as `q * scale`, expanded one matrix at a time; the
activations are never quantised.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def expand_blocks(weight: Tensor, scale_inv: Tensor, block: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """`weight * scale` of a block-fp8 matrix, computed in float32.

    Args:
        weight: `[..., rows, columns]` float8_e4m3fn.
        scale_inv: `[..., ceil(rows / block rows), ceil(columns / block columns)]` float32.

    Returns:
        `[..., rows, columns]` in `dtype`.
    """
    rows, columns = weight.shape[-2:]
    scale = scale_inv.repeat_interleave(block[0], -2)[..., :rows, :]
    scale = scale.repeat_interleave(block[1], -1)[..., :columns]
    return (weight.float() * scale).to(dtype)


def _blocks(size: int, block: int) -> int:
    return math.ceil(size / block)


class BlockFp8Linear(nn.Module):
    """`nn.Linear` without bias over a block-fp8 weight.

    Attributes:
        weight: `[out_features, in_features]` float8_e4m3fn.
        weight_scale_inv: `[out blocks, in blocks]` float32.
    """

    def __init__(self, in_features: int, out_features: int, block: tuple[int, int]) -> None:
        super().__init__()
        self.in_features, self.out_features, self.block = in_features, out_features, block
        self.weight = _fp8_parameter(out_features, in_features)
        self.weight_scale_inv = _scale_parameter(out_features, in_features, block)

    def dense_weight(self, dtype: torch.dtype) -> Tensor:
        return expand_blocks(self.weight, self.weight_scale_inv, self.block, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dense_weight(x.dtype))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, block={self.block}"


class ExpertLinear(nn.Module):
    """One matrix for each expert, over rows that are gathered by expert.

    Attributes:
        weight: `[num_experts, out_features, in_features]`.
    """

    def __init__(self, num_experts: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.num_experts, self.in_features, self.out_features = num_experts, in_features, out_features
        self.weight = nn.Parameter(torch.empty(num_experts, out_features, in_features))

    def forward(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Multiplies each expert's rows by its matrix; experts without rows cost nothing.

        Args:
            x: `[rows, in_features]`, the rows of expert 0 first.
            counts: rows of each expert.

        Returns:
            `[rows, out_features]`.
        """
        # Read once: under PEFT's parametrisation every access computes the adapted weight anew. Unbound at
        # once: indexing expert by expert would make a gradient of the whole tensor for each.
        return _grouped(x, counts, self.weight.unbind().__getitem__, self.out_features)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"num_experts={self.num_experts}, {sizes}"


class BlockFp8ExpertLinear(nn.Module):
    """`ExpertLinear` over block-fp8 weights; only the experts that have rows are expanded.

    Attributes:
        weight: `[num_experts, out_features, in_features]` float8_e4m3fn.
        weight_scale_inv: `[num_experts, out blocks, in blocks]` float32.
    """

    def __init__(self, num_experts: int, in_features: int, out_features: int, block: tuple[int, int]) -> None:
        super().__init__()
        self.num_experts, self.in_features, self.out_features = num_experts, in_features, out_features
        self.block = block
        self.weight = _fp8_parameter(num_experts, out_features, in_features)
        self.weight_scale_inv = _scale_parameter(out_features, in_features, block, num_experts)

    def dense_weight(self, dtype: torch.dtype) -> Tensor:
        return expand_blocks(self.weight, self.weight_scale_inv, self.block, dtype)

    def forward(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        def expert_weight(expert: int) -> Tensor:
            return expand_blocks(self.weight[expert], self.weight_scale_inv[expert], self.block, x.dtype)

        return _grouped(x, counts, expert_weight, self.out_features)

    extra_repr = ExpertLinear.extra_repr


def _grouped(
    x: Tensor, counts: Sequence[int], weight_of: Callable[[int], Tensor], out_features: int
) -> Tensor:
    if x.shape[0] == 0:
        return x.new_empty(0, out_features)
    groups = zip(range(len(counts)), x.split(list(counts)), strict=True)
    return torch.cat([F.linear(rows, weight_of(expert)) for expert, rows in groups if rows.shape[0]])


def _fp8_parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=torch.float8_e4m3fn), requires_grad=False)


def _scale_parameter(rows: int, columns: int, block: tuple[int, int], *leading: int) -> nn.Parameter:
    shape = (*leading, _blocks(rows, block[0]), _blocks(columns, block[1]))
    return nn.Parameter(torch.empty(*shape, dtype=torch.float32), requires_grad=False)


def linear(in_features: int, out_features: int, block: tuple[int, int] | None) -> nn.Module:
    """A projection without bias, block-fp8 where `block` says so."""
    if block:
        return BlockFp8Linear(in_features, out_features, block)
    return nn.Linear(in_features, out_features, bias=False)


def expert_linear(
    num_experts: int, in_features: int, out_features: int, block: tuple[int, int] | None
) -> nn.Module:
    """A projection for each expert, block-fp8 where `block` says so."""
    if block:
        return BlockFp8ExpertLinear(num_experts, in_features, out_features, block)
    return ExpertLinear(num_experts, in_features, out_features)


def _plain(layer: nn.Module) -> nn.Module:
    """An empty layer without quantisation in place of a block-fp8 one."""
    if isinstance(layer, BlockFp8Linear):
        return nn.Linear(layer.in_features, layer.out_features, bias=False)
    return ExpertLinear(layer.num_experts, layer.in_features, layer.out_features)


def _block_fp8_layers(model: nn.Module) -> list[tuple[str, nn.Module, str, nn.Module]]:
    """Each block-fp8 layer: its full name, its parent, its name there, itself."""
    return [
        (f"{path}.{name}" if path else name, parent, name, layer)
        for path, parent in model.named_modules()
        for name, layer in parent.named_children()
        if isinstance(layer, BlockFp8Linear | BlockFp8ExpertLinear)
    ]


def leave_plain(model: nn.Module, prefix: str, kept: Sequence[str]) -> None:
    """Takes quantisation back from layers that a checkpoint does not quantise.

    Args:
        prefix: what official tensor names have in front of the names in `model`.
        kept: parts of official tensor names.
    """
    for path, parent, name, layer in _block_fp8_layers(model):
        if any(part in f"{prefix}{path}.weight" for part in kept):
            setattr(parent, name, _plain(layer))


@torch.no_grad()
def dequantise(model: nn.Module, dtype: torch.dtype) -> None:
    """Replaces every block-fp8 layer of `model` by a plain, trainable one in `dtype`, one at a time."""
    for _, parent, name, layer in _block_fp8_layers(model):
        with torch.device("meta"):
            plain = _plain(layer)
        plain.weight = nn.Parameter(layer.dense_weight(dtype))
        setattr(parent, name, plain.train(layer.training))

"""What a model of given sizes weighs: parameters, bytes, KV cache, and the machines that hold it.

Computed from the config alone, so a model can be judged before its weights are fetched.
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace

from step3.checkpoint.config import BlockFp8, CheckpointConfig
from step3.checkpoint.layout import Kind, TensorSpec, layout
from step3.checkpoint.part import FFN_SIDE, VISION_SIDE

WEIGHT_FORMATS = ("bf16", "block-fp8")
KV_FORMATS = {"bf16": 2, "fp8": 1}
"""Bytes of a number in the KV cache."""

USABLE = 0.9
"""Share of a memory that is left to weights and KV cache, as engines commonly take it."""


@dataclass(frozen=True)
class Amount:
    """Parameters of one kind of tensor, and the bytes that they take in each weight format."""

    parameters: int
    bytes: dict[str, int]


@dataclass(frozen=True)
class Inventory:
    """What a config implies."""

    kinds: dict[Kind, Amount]
    total: Amount
    text_parameters: int
    """All parameters but those of the vision side."""
    active_parameters: int
    """Parameters that a text token is multiplied by: chosen experts only, and no embedding table."""
    kv_bytes_per_token: dict[str, int]


@dataclass(frozen=True)
class Machine:
    """`count` memories of `memory` bytes each."""

    name: str
    count: int
    memory: int


MACHINES = (
    Machine("8 x H100 80 GB", 8, 80 * 10**9),
    Machine("16 x H100 80 GB", 16, 80 * 10**9),
    Machine("8 x H20 96 GB", 8, 96 * 10**9),
    Machine("8 x H200 141 GB", 8, 141 * 10**9),
    Machine("8 x B200 180 GB", 8, 180 * 10**9),
    Machine("8 x MI300X 192 GB", 8, 192 * 10**9),
)


@dataclass(frozen=True)
class Fit:
    """How weights of one format lie on a machine."""

    machine: Machine
    weight_format: str
    kv_format: str
    bytes_each: int
    """Weights in each of its memories."""
    kv_tokens: int | None
    """Tokens of KV cache that the machine then holds; None if the weights do not fit."""


def take_inventory(config: CheckpointConfig) -> Inventory:
    """Count what `config` implies, whatever format its own weights are stored in."""
    plain = layout(replace(config, quantisation=None))
    fp8 = layout(replace(config, quantisation=config.quantisation or BlockFp8()))
    kinds = {}
    for kind in Kind:
        names = [name for name, spec in plain.items() if spec.kind is kind]
        if names:
            kinds[kind] = Amount(
                sum(plain[name].parameters for name in names),
                {
                    "bf16": sum(_bytes(plain[name]) for name in names),
                    "block-fp8": sum(_bytes(fp8[name]) for name in names),
                },
            )
    text = config.text
    text_parameters = sum(amount.parameters for kind, amount in kinds.items() if kind not in VISION_SIDE)
    experts = kinds[Kind.EXPERTS].parameters if Kind.EXPERTS in kinds else 0
    idle = experts // text.moe_num_experts * (text.moe_num_experts - text.moe_top_k)
    kv_numbers = 2 * text.num_hidden_layers * text.head_dim
    return Inventory(
        kinds=kinds,
        total=_sum(kinds.values()),
        text_parameters=text_parameters,
        active_parameters=text_parameters - kinds[Kind.EMBEDDING].parameters - idle,
        kv_bytes_per_token={name: kv_numbers * size for name, size in KV_FORMATS.items()},
    )


def fits(inventory: Inventory, machine: Machine) -> list[Fit]:
    """How the model lies on `machine`, in bf16 with a bf16 KV cache and in block-fp8 with an fp8 one.

    All but the FFN lies whole in each memory, beside the KV cache of the requests that its accelerator
    serves (data parallel); the FFN's weights are spread evenly. So no KV cache is held twice.
    """
    found = []
    for weights, kv in zip(WEIGHT_FORMATS, KV_FORMATS, strict=True):
        whole = sum(amount.bytes[weights] for kind, amount in inventory.kinds.items() if kind not in FFN_SIDE)
        spread = inventory.total.bytes[weights] - whole
        each = whole + -(-spread // machine.count)
        free = int(machine.memory * USABLE) - each
        tokens = free // inventory.kv_bytes_per_token[kv] * machine.count
        found.append(Fit(machine, weights, kv, each, tokens if free >= 0 else None))
    return found


def this_machine() -> Machine:
    """The memory of the machine that runs this."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(f"this machine, {memory / 1e9:.0f} GB", 1, memory)


def _bytes(spec: TensorSpec) -> int:
    return spec.parameters + 4 * math.prod(spec.scale_shape) if spec.quantised else 2 * spec.parameters


def _sum(amounts: Iterable[Amount]) -> Amount:
    table = list(amounts)
    return Amount(
        sum(amount.parameters for amount in table),
        {name: sum(amount.bytes[name] for amount in table) for name in WEIGHT_FORMATS},
    )

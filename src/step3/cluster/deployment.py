"""What the coordinator tells each instance that joins: everything that all of them must agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from step3.checkpoint import Checkpoint
from step3.engine.config import EngineConfig
from step3.engine.engine import activation_dtype
from step3.plan.topology import Topology, parse_topology
from step3.wire import Format, Shapes, Timing

_FORMATS = {
    "float32": Format.FLOAT32,
    "bfloat16": Format.BFLOAT16,
    "fp8": Format.FP8,
    torch.float32: Format.FLOAT32,
    torch.bfloat16: Format.BFLOAT16,
    # Products in float16 are sums of its numbers: bfloat16 would lose three bits of them.
    torch.float16: Format.FLOAT32,
}
MAX_SLOTS = 1024


@dataclass(frozen=True)
class Deployment:
    """The settings that hold for all instances.

    Attributes:
        topology: in the notation of `step3.plan.topology`.
        micro_batches: lanes of each attention instance.
        activations, partials: formats on the wire, as in `ClusterConfig`.
        lease: seconds of silence after which an instance counts as dead.
        spin: see `ClusterConfig`.
        engine: options of `EngineConfig` but for the model and the device, which are each instance's own.
        model: fingerprint of the checkpoint.
    """

    topology: str
    micro_batches: int
    activations: str
    partials: str
    lease: float
    spin: float
    engine: Mapping[str, Any]
    model: str

    def pack(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> Deployment:
        return cls(**packed)

    @property
    def shape(self) -> Topology:
        return parse_topology(self.topology)

    @property
    def timing(self) -> Timing:
        """The wire's deadlines: as the lease."""
        return Timing(heartbeat=self.lease / 8, silence=self.lease, handshake=max(5.0, self.lease))

    def engine_config(self, model: str | None, device: str | None) -> EngineConfig:
        own = {"model": model, **({} if device is None else {"device": device})}
        return EngineConfig.from_options({**self.engine, **own})

    def formats(self, config: EngineConfig, checkpoint: Checkpoint) -> tuple[Format, Format]:
        """Of activations and of partial sums."""
        dtype = activation_dtype(config, checkpoint)
        out, back = (None if one == "auto" else one for one in (self.activations, self.partials))
        return _FORMATS[out or dtype], _FORMATS[back or dtype]

    def shapes(self, config: EngineConfig, checkpoint: Checkpoint, slots: int) -> Shapes:
        """What calls look like; `slots` may be outstanding between two instances."""
        sizes = checkpoint.config.text
        has_experts = bool(sizes.moe_layers)
        return Shapes(
            hidden=sizes.hidden_size,
            max_tokens=max(config.max_num_batched_tokens, config.max_num_seqs),
            layers=sizes.num_hidden_layers,
            experts=sizes.moe_num_experts if has_experts else 0,
            top_k=sizes.moe_top_k if has_experts else 0,
            slots=slots,
        )

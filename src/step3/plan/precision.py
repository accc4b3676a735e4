"""How many bytes each part of a model takes: quantisation by part."""

from dataclasses import dataclass, fields

from step3.plan.errors import PlanError

BYTES = {"fp32": 4.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 4.25 / 8}
"""Bytes an element by type. `fp4` is MXFP4: 4 bits and an 8-bit scale for every 32 elements."""

FP8_WIRE_SCALE_BYTES = 4 / 128
"""On the wire fp8 carries a float32 scale for each token and 128 channels."""


@dataclass(frozen=True)
class Precision:
    """The type of every part, each a key of `BYTES`.

    Raises:
        PlanError: a part's type is not one of `BYTES`.
    """

    attention_weights: str = "fp8"
    """The attention's projections."""
    ffn_weights: str = "fp8"
    """Dense FFNs, routed and shared experts."""
    head: str = "bf16"
    """Embedding and output head."""
    router: str = "bf16"
    kv: str = "fp8"
    """The cache of layers that see the whole context."""
    kv_windowed: str = "fp8"
    """The cache of layers that see a window or a chunk."""
    state: str = "fp32"
    """The state of linear attention."""
    wire_out: str = "fp8"
    """Activations from attention to FFN."""
    wire_back: str = "bf16"
    """Partial sums from FFN to attention."""

    def __post_init__(self) -> None:
        for part in fields(self):
            kind = getattr(self, part.name)
            if kind not in BYTES:
                raise PlanError(f"{part.name} cannot be {kind!r}: choose from {', '.join(BYTES)}")


def wire_bytes(kind: str) -> float:
    """Bytes of one activation on the wire, the scales of fp8 included."""
    return BYTES[kind] + (FP8_WIRE_SCALE_BYTES if kind == "fp8" else 0.0)

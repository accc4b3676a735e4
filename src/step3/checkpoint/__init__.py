"""Checkpoints: safetensors in and out, whole or in parts, bf16 or block-fp8.

    checkpoint = Checkpoint.open("step3-fp8")
    checkpoint.check()
    weights = checkpoint.load(Part(FFN_SIDE, experts=range(0, 24)), device="cuda")

Knows names and bytes, not what layers do with them.
"""

from step3.checkpoint.config import CheckpointConfig, TextSizes, VisionSizes, read_config
from step3.checkpoint.errors import CheckpointError
from step3.checkpoint.header import TensorInfo
from step3.checkpoint.layout import Kind, TensorSpec, layout
from step3.checkpoint.part import ATTENTION_SIDE, EVERYTHING, FFN_SIDE, VISION_SIDE, Part, Slice
from step3.checkpoint.reader import Checkpoint

__all__ = [
    "ATTENTION_SIDE",
    "EVERYTHING",
    "FFN_SIDE",
    "VISION_SIDE",
    "Checkpoint",
    "CheckpointConfig",
    "CheckpointError",
    "Kind",
    "Part",
    "Slice",
    "TensorInfo",
    "TensorSpec",
    "TextSizes",
    "VisionSizes",
    "layout",
    "read_config",
]

"""The golden checkpoints and answers: small drawn weights, computed by an independent engine in float32."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoProcessor

import step3  # noqa: F401 (registers the Auto classes)

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def cases(checkpoint: str) -> list[dict[str, Any]]:
    return json.loads((GOLDEN / checkpoint / "golden.json").read_text())["cases"]


def picture(width: int, height: int, seed: int) -> Image.Image:
    """The picture that a golden case was computed with."""
    y, x = np.mgrid[0:height, 0:width]
    checks = ((x // (17 + seed) + y // (13 + seed)) % 2) * 255
    channels = (x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), checks)
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8), "RGB")


@cache
def model(checkpoint: str, dtype: torch.dtype = torch.float32) -> Any:
    """The checkpoint's network; not to be changed by a test."""
    return AutoModelForCausalLM.from_pretrained(GOLDEN / checkpoint, torch_dtype=dtype)


@cache
def inputs(checkpoint: str, number: int) -> dict[str, Tensor]:
    """What the network gets for a case: from the processor where there are pictures."""
    case = cases(checkpoint)[number]
    if "prompt" not in case:
        return {"input_ids": torch.tensor([case["prompt_token_ids"]])}
    processor = AutoProcessor.from_pretrained(GOLDEN / checkpoint)
    pictures = [
        picture(*size, seed) for size, seed in zip(case["images"], case["picture_seeds"], strict=True)
    ]
    return dict(processor(images=pictures, text=case["prompt"], return_tensors="pt"))

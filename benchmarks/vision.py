"""Time of a picture in the vision tower: the CPU kernels beside torch, and what the machine could do at most.

    python benchmarks/vision.py
    python benchmarks/vision.py --picture 1600x1100 --layers 4 --rounds 5 --json vision.json

The tower has the published sizes but for its number of layers (63, all alike), and random weights. Both take
turns with the same pixels: the picture at 728 px and its crops at 504 px. The limit is the operations of the
linear layers and of attention, over the peak of bf16 products as measured in the same rounds.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from step3.checkpoint import VISION_SIDE
from step3.checkpoint.config import CheckpointConfig, TextSizes, VisionSizes
from step3.checkpoint.layout import layout
from step3.engine.network import VisionNetwork
from step3.engine.pictures import CROPS_AT_ONCE
from step3.engine.vision import CLASS_ROWS, VisionTower
from step3.kernels.cpu import open_library, why_not
from step3.kernels.cpu.weights import Packing
from step3.model.image_processing_step3 import Step3ImageProcessor

SIZES = VisionSizes(
    hidden_size=1792,
    intermediate_size=15360,
    output_hidden_size=4096,
    num_hidden_layers=2,
    num_channels=3,
    image_size=728,
    patch_size=14,
    projector_bias=False,
)
NETWORK = VisionNetwork(SIZES, 16, 1e-5, "quick_gelu", 2, 0, 169, 81)
# What the features go to; of the decoder only this matters here.
TEXT = TextSizes(7168, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, ())


def draw_weights(sizes: VisionSizes) -> dict[str, Tensor]:
    """Random bfloat16 weights that keep the scale of what flows through."""

    def draw(shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        return (torch.randn(shape) / torch.Size(shape[1:]).numel() ** 0.5).bfloat16()

    tensors = layout(CheckpointConfig(TEXT, sizes)).values()
    return {spec.name: draw(spec.shape) for spec in tensors if spec.kind in VISION_SIDE}


def operations(sizes: VisionSizes, side: int) -> float:
    """Of the layers, for one square picture."""
    rows = (side // sizes.patch_size) ** 2 + CLASS_ROWS
    weights = sizes.hidden_size * (4 * sizes.hidden_size + 2 * sizes.intermediate_size)
    return sizes.num_hidden_layers * (2 * rows * weights + 4 * rows**2 * sizes.hidden_size)


def main(
    picture: Annotated[str, typer.Option(help="Its size in pixels.")] = "1600x1100",
    layers: Annotated[int, typer.Option(help="Layers of the tower.")] = 2,
    rounds: Annotated[int, typer.Option(help="How often each is timed.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where the figures go too.")] = None,
) -> None:
    """Times a picture in the vision tower."""
    torch.manual_seed(0)
    width, height = map(int, picture.split("x"))
    image = Image.effect_noise((width, height), 64).convert("RGB")
    processor = Step3ImageProcessor()
    began = time.perf_counter()
    inputs = processor([image])
    preprocessing = time.perf_counter() - began
    whole, crops = inputs["pixel_values"], inputs["patch_pixel_values"]
    sizes = replace(SIZES, num_hidden_layers=layers)
    network, weights = replace(NETWORK, sizes=sizes), draw_weights(sizes)
    library = open_library()
    if library is None:
        raise SystemExit(why_not())
    placed = VisionTower.of(network, weights, Packing(library, integers=16))
    towers = {"the CPU kernels": placed, "torch": VisionTower.of(network, weights)}
    work = operations(sizes, whole.shape[-1]) + len(crops) * operations(sizes, crops.shape[-1])
    seconds: dict[str, list[float]] = {name: [] for name in towers}
    peaks = []
    with torch.inference_mode():
        for _ in range(rounds):
            peaks.append(library.c.step3_peak_flops(torch.get_num_threads(), 0.2, 16) * 1e9)
            for name, tower in towers.items():
                began = time.perf_counter()
                for piece in crops.split(CROPS_AT_ONCE) if len(crops) else ():
                    tower.encode(piece)
                tower.encode(whole)
                seconds[name].append(time.perf_counter() - began)
    limit = median(work / peak for peak in peaks)
    table = Table(title=f"{picture}: {len(crops)} crops, {layers} layers, {work / 1e12:.1f} TFLOP")
    for column in ("", "seconds", "of the peak", "times torch"):
        table.add_column(column, justify="right" if column else "left")
    for name, taken in seconds.items():
        ratio = median(b / a for a, b in zip(taken, seconds["torch"], strict=True))
        table.add_row(name, f"{median(taken):.2f}", f"{limit / median(taken):.0%}", f"{ratio:.2f}")
    table.add_row("preprocessing", f"{preprocessing:.3f}", "", "")
    table.add_row("limit of the layers", f"{limit:.2f}", "", "")
    Console().print(table)
    if json_file is not None:
        figures = {"seconds": seconds, "peaks": peaks, "operations": work, "preprocessing": preprocessing}
        json_file.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    typer.run(main)

"""Time of a layer's FFN on the CPU kernels: in bf16, in block-fp8, and in integers where they are products.

    python benchmarks/ffn.py
    python benchmarks/ffn.py --hidden 7168 --inner 5120 --experts 3 --tokens 256

Weights, activations and choices are random; the shared expert is as wide as a routed one. The kinds take
turns, and are held against the peak of products (on AVX2 of integers) as measured in the same rounds.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from step3.checkpoint.block_fp8 import quantise
from step3.kernels.cpu import INTEGER_LEVELS, Library, open_library, why_not
from step3.kernels.cpu.ffn import CpuSwiGLU, PackedFFN
from step3.kernels.cpu.weights import Packing, Workspace
from step3.kernels.linear import BlockFp8, Weight

KINDS = {
    "bf16": (False, 0),
    "block-fp8": (True, 0),
    "bf16, 16-bit integers": (False, 16),
    "block-fp8, 16-bit integers": (True, 16),
    "block-fp8, 8-bit activations": (True, 8),
}
"""Whether weights are quantised, and bits of the integers that are multiplied."""


def draw_ffn(
    library: Library, quantised: bool, integers: int, hidden: int, inner: int, experts: int
) -> PackedFFN:
    placement = Packing(library, integers=integers)

    def draw(*shape: int) -> Weight:
        weight = torch.randn(*shape) * 0.02
        return BlockFp8(*quantise(weight)) if quantised else weight.bfloat16()

    def take(*lead: int) -> CpuSwiGLU:
        gate, up, down = draw(*lead, inner, hidden), draw(*lead, inner, hidden), draw(*lead, hidden, inner)
        return CpuSwiGLU.take(placement, gate, up, down)

    return PackedFFN(Workspace(library), take(), take(experts))


def main(
    hidden: Annotated[int, typer.Option(help="Size of the hidden states.")] = 1536,
    inner: Annotated[int, typer.Option(help="Intermediate size of an expert.")] = 1024,
    experts: Annotated[int, typer.Option(help="Routed experts.")] = 24,
    top_k: Annotated[int, typer.Option(help="Experts that a token chooses.")] = 3,
    tokens: Annotated[int, typer.Option(help="Tokens of a call.")] = 2048,
    rounds: Annotated[int, typer.Option(help="How often each kind is timed.")] = 9,
) -> None:
    """Time the FFN of a layer."""
    torch.manual_seed(0)
    library = open_library()
    if library is None:
        raise SystemExit(why_not())
    kinds = {
        name: (quantised, integers)
        for name, (quantised, integers) in KINDS.items()
        if not integers or library.level in INTEGER_LEVELS[integers]
    }
    ffns = {name: draw_ffn(library, *kind, hidden, inner, experts) for name, kind in kinds.items()}
    x = torch.randn(tokens, hidden).bfloat16()
    ids = torch.stack([torch.randperm(experts)[:top_k] for _ in range(tokens)])
    weights = torch.rand(tokens, top_k)
    seconds: dict[str, list[float]] = {name: [] for name in ffns}
    peaks = []
    for number in range(rounds + 1):
        peaks.append(library.c.step3_peak_flops(torch.get_num_threads(), 0.05, 16))
        for name, ffn in ffns.items():
            began = time.perf_counter()
            ffn.forward(x, ids, weights)
            # The first time buffers are new.
            if number:
                seconds[name].append(time.perf_counter() - began)
    operations = 6.0 * tokens * (top_k + 1) * hidden * inner
    table = Table("", "ms", "GFLOP/s", "of the peak", title=f"{tokens} tokens, {library.level}")
    for name, taken in seconds.items():
        rate = operations / median(taken) / 1e9
        table.add_row(name, f"{median(taken) * 1e3:.1f}", f"{rate:,.0f}", f"{rate / median(peaks):.0%}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)

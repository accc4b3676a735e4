"""Measures, in a process of its own, by how many bytes memory peaks above what it was before.

usage: peak_memory.py load FOLDER CASES           for each case, the bytes that stay and the peak
       peak_memory.py quantise IN OUT CASES       the bytes gone through and the peak
CASES is a JSON list of keyword arguments.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from step3.checkpoint import Checkpoint, Kind, Part
from step3.checkpoint.quantisation import Quantisation


def resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def restart_peak() -> int:
    """Forget the peak so far; returns what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS:")


def measure(work: str, *paths: Path, cases: list[dict]) -> list[tuple[int, int]]:
    """Run this file; returns the two numbers of each case."""
    command = [sys.executable, __file__, work, *map(str, paths), json.dumps(cases)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return [(int(first), int(second)) for first, second in map(str.split, lines.splitlines())]


def load(folder: str, keywords: dict) -> tuple[int, int]:
    if "dtype" in keywords:
        keywords["dtype"] = getattr(torch, keywords["dtype"])
    checkpoint = Checkpoint.open(folder)
    checkpoint.load(Part(frozenset({Kind.ATTENTION}), layers=range(1)), **keywords)
    before = restart_peak()
    weights = checkpoint.load(**keywords)
    stays = sum(tensor.nbytes for tensor in weights.values())
    return stays, resident("VmHWM:") - before


def quantise(source: str, target: str, keywords: dict) -> tuple[int, int]:
    quantisation = Quantisation(source, target, **keywords)
    before = restart_peak()
    quantisation.run()
    return quantisation.total_bytes, resident("VmHWM:") - before


if __name__ == "__main__":
    work, *paths, cases = sys.argv[1:]
    for keywords in json.loads(cases):
        print(*{"load": load, "quantise": quantise}[work](*paths, keywords))

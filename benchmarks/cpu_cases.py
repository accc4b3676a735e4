"""The cases of `benchmarks/cpu.py`, as its workers answer them. It runs in vLLM's environment too."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from typing import TextIO


def answer_cases(seconds: Callable[[list[list[int]], int], float], answers: TextIO) -> None:
    """Measures a case for each line of standard input, and writes a line of JSON.

    A case is `[batch, prompt, new, number]`: `batch` prompts of `prompt` tokens drawn from `number`, behind
    which `new` tokens follow. Prefill is timed the first time only: afterwards the prompts are in the prefix
    cache, and the difference of two calls is the time of decoding.

    Args:
        seconds: how long it takes until all prompts have so many new tokens.
    """
    known = set()
    for line in sys.stdin:
        batch, prompt, new, number = json.loads(line)
        # Prompts that another case had would be in the prefix cache.
        draw = random.Random(f"{batch} {prompt} {number}")
        prompts = [[draw.randrange(20, 4000) for _ in range(prompt)] for _ in range(batch)]
        result = {}
        first = seconds(prompts, 1)
        if line not in known:
            known.add(line)
            result["prefill"] = batch * prompt / first
        cached = seconds(prompts, 1)
        result["decode"] = batch * (new - 1) / (seconds(prompts, new) - cached)
        print(json.dumps(result), file=answers, flush=True)

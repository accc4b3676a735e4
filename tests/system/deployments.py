"""Whole deployments in processes of their own, and what may befall them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from engine_requests import GOLDEN

from step3 import LLM, SamplingParams
from step3.engine.outputs import RequestOutput
from step3.engine.sampling.params import RequestOutputKind

PATIENCE = 180
"""Seconds after which something that should happen did not."""


def start(topology: str, checkpoint: str = "text", **options: Any) -> LLM:
    defaults = {"dtype": "float32", "max_model_len": 1024, "max_num_seqs": 16, "threads": 1, "lease": 3.0}
    return LLM(str(GOLDEN / checkpoint), quiet=True, topology=topology, **{**defaults, **options})


def prompts(count: int) -> list[list[int]]:
    return [[20 + number, *range(30, 60), 7 + number % 5 + 20] for number in range(count)]


def params(number: int, tokens: int) -> SamplingParams:
    """Every other one is sampled; none brings a seed."""
    return SamplingParams(
        temperature=0.0 if number % 2 else 0.8, seed=number, max_tokens=tokens, ignore_eos=True, logprobs=0
    )


class Stream:
    """One request's outputs as they come."""

    def __init__(self, llm: LLM, prompt: list[int], own: SamplingParams) -> None:
        from dataclasses import replace

        own = replace(own, output_kind=RequestOutputKind.DELTA)
        self.text, self.tokens, self.times = "", list[int](), list[float]()
        self.error: Exception | None = None
        self.ended = threading.Event()
        self._llm = llm
        request = llm.cluster.request({"prompt_token_ids": prompt}, own)
        llm.cluster.submit(request, {"prompt_token_ids": prompt}, own, self._put)

    def _put(self, output: RequestOutput | Exception) -> None:
        if isinstance(output, Exception):
            self.error = output
            self.ended.set()
            return
        for one in output.outputs:
            self.text += one.text
            self.tokens += one.token_ids
            assert one.logprobs is None or len(one.logprobs) == len(one.token_ids)
        self.times.append(time.monotonic())
        if output.finished:
            self.ended.set()


def pid_of(llm: LLM, role: str, instance: int) -> int:
    return next(one["pid"] for one in llm.cluster.describe()[role] if one["instance"] == instance)


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.02)


def is_whole(llm: LLM, attention: int, ffn: int) -> bool:
    found = llm.cluster.describe()
    ready = [len([one for one in found[role] if one["state"] == "ready"]) for role in ("attention", "ffn")]
    return ready == [attention, ffn]


def kill(pid: int, how: signal.Signals = signal.SIGKILL) -> None:
    os.kill(pid, how)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet has."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True

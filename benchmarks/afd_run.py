"""Runs a load on an AFD deployment of this machine, and tells what each stage and each request took.

Used by `simulator_against_runs.py`. The network has random weights and sizes whose stages take milliseconds;
its vocabulary and tokenizer are the bundled model's. Requests are given as data, so that the same load can be
simulated.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from step3 import SamplingParams
from step3.cluster.async_llm import ClusterLLM
from step3.engine.sampling.params import RequestOutputKind
from step3.model.configuration_step3 import Step3TextConfig
from step3.model.modeling_step3 import Step3TextForCausalLM
from step3.nano.architecture import BUNDLED

VOCABULARY = 2048
LAYERS = 4
DENSE_LAYERS = 1
EXPERTS = 16
MAX_CONTEXT = 4096

REST = 0.25
"""Seconds between two loads."""


def write_network(folder: Path) -> None:
    """A checkpoint of random weights, 0.3 GB in bfloat16."""
    config = Step3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        share_q_dim=1024,
        head_dim=128,
        moe_num_experts=EXPERTS,
        moe_top_k=2,
        moe_intermediate_size=512,
        share_expert_dim=512,
        moe_layers_enum=tuple(range(DENSE_LAYERS, LAYERS)),
        max_position_embedding=MAX_CONTEXT,
        max_seq_len=MAX_CONTEXT,
    )
    torch.manual_seed(0)
    Step3TextForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED / name, folder)


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        at: seconds since the run began.
        prompt, output: tokens.
    """

    at: float
    prompt: int
    output: int


@dataclass(frozen=True)
class Answered:
    """What a client saw of a request: seconds since the run began."""

    asked: Asked
    first: float
    last: float

    @property
    def tpot(self) -> float:
        return (self.last - self.first) / (self.asked.output - 1)


@dataclass(frozen=True)
class Run:
    """What came of a load.

    Attributes:
        began: second of this host's monotonic clock.
        answers: in the order of the requests.
        front: seconds of the processor that this process took, the client in it.
        foreign: share of the cores' time that neither this process nor the instances had, but others: what
            else runs here, or on the machine below a virtual one.
    """

    began: float
    answers: tuple[Answered, ...]
    front: float
    foreign: float

    @property
    def tokens(self) -> int:
        """Of all outputs."""
        return sum(one.asked.output for one in self.answers)

    @property
    def seconds(self) -> float:
        return max(one.last for one in self.answers)

    @property
    def tpot(self) -> float:
        """Seconds, the mean over requests."""
        values = [one.tpot for one in self.answers if one.asked.output > 1]
        return sum(values) / len(values)

    @property
    def throughput(self) -> float:
        """Output tokens a second, from the first request to the last token."""
        return self.tokens / self.seconds


class Deployment:
    """A running deployment; a context manager."""

    def __init__(
        self, folder: Path, topology: str, lanes: int, seats: int, budget: int, **options: Any
    ) -> None:
        """
        Args:
            seats: sequences of an attention instance at most.
            budget: tokens of all lanes' steps together.
        """
        self._llm = ClusterLLM(
            str(folder),
            topology=topology,
            micro_batches=lanes,
            max_num_seqs=seats,
            max_num_batched_tokens=budget,
            max_model_len=MAX_CONTEXT,
            kv_cache_memory_bytes=512 << 20,
            enable_prefix_caching=False,
            threads=1,
            **options,
        )

    def __enter__(self) -> Deployment:
        self.play([[Asked(0.0, 24, 6)] * 4])
        return self

    def __exit__(self, *_: object) -> None:
        self._llm.shutdown()

    def play(self, loads: Sequence[Sequence[Asked]]) -> list[Run]:
        """Plays loads, one after the other, with a rest of `REST` seconds before each."""
        return asyncio.run(self._play_all(loads))

    def play_traced(
        self, loads: Sequence[Sequence[Asked]], seconds: float
    ) -> tuple[list[Run], list[dict[str, Any]]]:
        """The same, and the events of a trace of so many seconds; what comes later is not in it."""
        return asyncio.run(self._play_traced(loads, seconds))

    async def _play_traced(
        self, loads: Sequence[Sequence[Asked]], seconds: float
    ) -> tuple[list[Run], list[dict[str, Any]]]:
        trace = asyncio.create_task(asyncio.to_thread(self._llm.front.trace, seconds))
        runs = await self._play_all(loads)
        return runs, (await trace)["traceEvents"]

    async def _play_all(self, loads: Sequence[Sequence[Asked]]) -> list[Run]:
        runs = []
        for load in loads:
            await asyncio.sleep(REST)
            before, began = self._used(), time.monotonic()
            answers = await asyncio.gather(*(self._ask(at, one, began) for at, one in enumerate(load)))
            seconds = time.monotonic() - began
            front, own, everyone = (now - then for now, then in zip(self._used(), before, strict=True))
            foreign = max(everyone - own, 0.0) / (seconds * len(os.sched_getaffinity(0)))
            runs.append(Run(began, tuple(answers), front, foreign))
        return runs

    async def _ask(self, number: int, asked: Asked, began: float) -> Answered:
        await asyncio.sleep(max(began + asked.at - time.monotonic(), 0.0))
        prompt = [20 + (number * 7 + place * 13) % 1800 for place in range(asked.prompt)]
        params = SamplingParams(
            temperature=0,
            max_tokens=asked.output,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        first = last = 0.0
        async for _ in self._llm.generate({"prompt_token_ids": prompt}, params):
            last = time.monotonic() - began
            first = first or last
        return Answered(asked, first, last)

    def _used(self) -> tuple[float, float, float]:
        """Seconds of the processor: of this process, of it and all instances, and of everyone."""
        described = self._llm.front.describe()
        front = time.process_time()
        pids = [one["pid"] for role in ("attention", "ffn") for one in described[role]]
        # The kernel's name of the clock that counts another process's time.
        own = front + sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, irq, soft_irq, steal = map(int, file.readline().split()[1:9])
        ticks = user + nice + system + irq + soft_irq + steal
        return front, own, ticks / os.sysconf("SC_CLK_TCK")

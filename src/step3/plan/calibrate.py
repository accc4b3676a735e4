"""Measuring this machine: its peaks, its bandwidth, and what torch's kernels attain of them.

The result is one entry of a hardware file. Efficiencies come from kernels at sizes like a decoding step's,
each once where bytes should bind and once where FLOPs should; what is measured is torch's own kernel of
the family. Links to other machines cannot be measured alone: they are told, or marked as assumed.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from step3.plan.errors import HardwareError

EXPERTS = 8
HEAD_DIM = 128
CONTEXT = 2048


@dataclass(frozen=True)
class Sizes:
    """How large the measured problems are: larger on an accelerator, whose launches cost more."""

    square: int
    """Side of the matrices for the compute peak."""
    stream: int
    """Bytes of the array that is read for the bandwidth."""
    hidden: int
    """Columns of the kernels' matrices; they have twice as many rows."""
    heads: int
    """Sequences of one head each in the attention."""
    many: int
    """Rows where FLOPs should bind."""


CPU_SIZES = Sizes(square=1536, stream=512 << 20, hidden=2048, heads=8, many=512)
CUDA_SIZES = Sizes(square=8192, stream=4 << 30, hidden=8192, heads=64, many=4096)

Measurement = tuple[str, Callable[[], None]]


class Calibration:
    """One machine's measurements, taken step by step.

    Args:
        device: `cpu` or `cuda`.
        seconds: time for each measurement; the fastest of its runs counts.

    Raises:
        HardwareError: torch is missing, or there is no such device.
    """

    def __init__(self, device: str, seconds: float = 0.7) -> None:
        try:
            import torch
        except ImportError:
            raise HardwareError("calibration needs torch: pip install torch") from None
        if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
            raise HardwareError(f"device {device!r} cannot be measured here: choose cpu or a present cuda")
        self.torch: Any = torch
        self.device = device
        self.seconds = seconds
        self.sizes = CUDA_SIZES if device == "cuda" else CPU_SIZES
        self.found: dict[str, float] = {}
        self._dtype: Any = torch.bfloat16

    def steps(self) -> Iterator[Measurement]:
        """What to measure, in order; each adds to `found`."""
        torch = self.torch
        yield "memory bandwidth", self._bandwidth
        yield "bf16 peak", self._peak
        if (
            self.device == "cuda"
            and hasattr(torch, "_scaled_mm")
            and torch.cuda.get_device_capability() >= (8, 9)
        ):
            yield "fp8 peak", self._fp8_peak
        yield "projections, few rows", lambda: self._linear(1, "linear_memory")
        yield "projections, many rows", lambda: self._linear(self.sizes.many, "linear_compute")
        yield "experts, few rows", lambda: self._experts(1, "ffn_memory")
        yield "experts, many rows", lambda: self._experts(self.sizes.many // 2, "ffn_compute")
        yield "attention, one query a head", lambda: self._attention(1, "attention_memory")
        yield "attention, many queries a head", lambda: self._attention(64, "attention_compute")

    def _fastest(self, run: Callable[[], Any]) -> float:
        """Seconds of the fastest run."""
        synchronize = self.torch.cuda.synchronize if self.device == "cuda" else lambda: None
        best, end = float("inf"), time.perf_counter() + self.seconds
        with self.torch.inference_mode():
            run()
            while True:
                synchronize()
                start = time.perf_counter()
                run()
                synchronize()
                now = time.perf_counter()
                best = min(best, now - start)
                if now > end:
                    return best

    def _tensor(self, *shape: int, dtype: Any = None) -> Any:
        tensor = self.torch.empty(*shape, device=self.device).uniform_(-0.05, 0.05)
        return tensor.to(dtype or self._dtype)

    def _bandwidth(self) -> None:
        data = self.torch.ones(self.sizes.stream // 4, device=self.device)
        self.found["memory_bandwidth"] = self.sizes.stream / self._fastest(data.sum)

    def _peak(self) -> None:
        """The bf16 peak; a processor without bf16 may be faster in float32, and then works in that."""
        n, torch = self.sizes.square, self.torch
        rates = {}
        for dtype in (torch.bfloat16, torch.float32) if self.device == "cpu" else (torch.bfloat16,):
            a, b = self._tensor(n, n, dtype=dtype), self._tensor(n, n, dtype=dtype)
            rates[dtype] = 2 * n**3 / self._fastest(partial(torch.matmul, a, b))
        self._dtype = max(rates, key=lambda dtype: rates[dtype])
        self.found["bf16_flops"] = rates[self._dtype]

    def _fp8_peak(self) -> None:
        torch, n = self.torch, self.sizes.square
        a = self._tensor(n, n).to(torch.float8_e4m3fn)
        b = self._tensor(n, n).to(torch.float8_e4m3fn).t()
        one = torch.ones((), device=self.device)
        product = partial(torch._scaled_mm, a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
        self.found["fp8_flops"] = 2 * n**3 / self._fastest(product)

    def _share(self, name: str, flops: float, moved: float, seconds: float) -> None:
        """Attained share of the roofline's bound."""
        bound = max(flops / self.found["bf16_flops"], moved / self.found["memory_bandwidth"])
        self.found[name] = min(bound / seconds, 1.0)

    def _linear(self, rows: int, name: str) -> None:
        inner, outer = self.sizes.hidden, 2 * self.sizes.hidden
        weight, x = self._tensor(outer, inner), self._tensor(rows, inner)
        linear = self.torch.nn.functional.linear
        seconds = self._fastest(lambda: linear(x, weight))
        self._share(name, 2 * rows * inner * outer, weight.nbytes, seconds)

    def _experts(self, rows: int, name: str) -> None:
        inner, outer = self.sizes.hidden, self.sizes.hidden // 2
        functional = self.torch.nn.functional
        up = self._tensor(EXPERTS, 2 * outer, inner)
        down = self._tensor(EXPERTS, inner, outer)
        x = self._tensor(EXPERTS, rows, inner)

        def run() -> Any:
            gate, value = self.torch.bmm(x, up.transpose(1, 2)).chunk(2, dim=-1)
            return self.torch.bmm(functional.silu(gate) * value, down.transpose(1, 2))

        self._share(name, 6 * EXPERTS * rows * inner * outer, up.nbytes + down.nbytes, self._fastest(run))

    def _attention(self, queries: int, name: str) -> None:
        heads = self.sizes.heads
        key, value = (self._tensor(heads, 1, CONTEXT, HEAD_DIM) for _ in range(2))
        query = self._tensor(heads, 1, queries, HEAD_DIM)
        attention = self.torch.nn.functional.scaled_dot_product_attention
        seconds = self._fastest(lambda: attention(query, key, value))
        self._share(name, 4 * heads * queries * CONTEXT * HEAD_DIM, key.nbytes + value.nbytes, seconds)

    def entry(self, usd_per_hour: float | None, network_gbit_s: float | None) -> dict[str, Any]:
        """The hardware entry, once all steps have run; None is assumed, and marked so."""
        found, torch = self.found, self.torch
        tflops = {"bf16": round(found["bf16_flops"] / 1e12, 4)}
        if "fp8_flops" in found:
            tflops["fp8"] = round(found["fp8_flops"] / 1e12, 4)
        if self.device == "cuda":
            memory = torch.cuda.get_device_properties(0).total_memory
        else:
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        bandwidth = found["memory_bandwidth"] / 1e9
        return {
            "usd_per_hour": 0.1 if usd_per_hour is None else usd_per_hour,
            "price_source": "assumed" if usd_per_hour is None else "given",
            "tflops": tflops,
            "memory_gb_s": round(bandwidth, 2),
            "memory_gib": round(memory / 2**30, 1),
            "network_gbit_s": 10.0 if network_gbit_s is None else network_gbit_s,
            "node_gb_s": round(bandwidth / 2, 2),
            "cards_per_node": torch.cuda.device_count() if self.device == "cuda" else 1,
            "efficiency": {
                family: {
                    # Three digits, not three places: a share of 0 would say that nothing is ever done.
                    "compute": float(f"{found[f'{family}_compute']:.3g}"),
                    "memory": float(f"{found[f'{family}_memory']:.3g}"),
                }
                for family in ("attention", "linear", "ffn")
            },
            "measured": f"step3 calibrate, torch {torch.__version__}, {self.describe()}",
        }

    def describe(self) -> str:
        """The device in words."""
        if self.device == "cuda":
            return str(self.torch.cuda.get_device_name(0))
        return f"{_processor()}, {self.torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

"""Prefill time of the network against two plain ways of computing its experts.

    python benchmarks/network_prefill.py
    python benchmarks/network_prefill.py --hidden 1536 --expert-dim 1024 --layers 16 --json prefill.json

Three networks share all weights and differ in one thing, how a layer with experts computes them:

    step3        pairs of token and expert sorted by expert, one multiplication for each expert in use
    own tokens   a loop over all experts; each picks its tokens, computes them and adds them back
    all tokens   a loop over all experts; each computes every token, scaled by the router (mostly by 0)

They take turns, in another order every round, so that a machine that slows down slows all of them. Times are
medians over the rounds: on the clock, and of the processor, which others at work hardly change.
"""

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from step3.model.configuration_step3 import Step3TextConfig
from step3.model.layers_step3 import Step3MoE
from step3.model.modeling_step3 import Step3TextForCausalLM

Forward = Callable[[Step3MoE, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Timing:
    """Medians of one way, in seconds, and how many times longer than step3's it takes."""

    way: str
    seconds: float
    cpu_seconds: float
    ratio: float
    cpu_ratio: float


def swiglu(moe: Step3MoE, expert: int, x: Tensor) -> Tensor:
    gate, up, down = (part.weight[expert] for part in (moe.gate_proj, moe.up_proj, moe.down_proj))
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def router_weights(moe: Step3MoE, x: Tensor) -> tuple[Tensor, Tensor]:
    """`[tokens, experts]` twice: the weight of each expert, 0 where it is not chosen; the logits."""
    logits = moe.gate(x)
    weights, experts = logits.softmax(-1).topk(moe.top_k)
    if moe.renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return torch.zeros_like(logits).scatter(1, experts, weights), logits


def own_tokens(moe: Step3MoE, x: Tensor) -> tuple[Tensor, Tensor]:
    weights, logits = router_weights(moe, x)
    out = torch.zeros_like(x)
    for expert in range(moe.num_experts):
        mine = weights[:, expert].nonzero()[:, 0]
        scaled = swiglu(moe, expert, x[mine]) * weights[mine, expert, None]
        out.index_add_(0, mine, scaled.to(x.dtype))
    return out, logits


def all_tokens(moe: Step3MoE, x: Tensor) -> tuple[Tensor, Tensor]:
    weights, logits = router_weights(moe, x)
    out = torch.zeros_like(x)
    for expert in range(moe.num_experts):
        out += (swiglu(moe, expert, x) * weights[:, expert, None]).to(x.dtype)
    return out, logits


WAYS: dict[str, Forward] = {"step3": Step3MoE.forward, "own tokens": own_tokens, "all tokens": all_tokens}


def build(arguments: argparse.Namespace) -> Step3TextForCausalLM:
    """A drawn network: one dense layer, then layers with experts, as `arguments` size it."""
    config = Step3TextConfig(
        hidden_size=arguments.hidden,
        intermediate_size=arguments.dense_dim,
        num_attention_heads=arguments.heads,
        num_hidden_layers=arguments.layers,
        vocab_size=8192,
        moe_intermediate_size=arguments.expert_dim,
        moe_num_experts=arguments.experts,
        moe_top_k=arguments.top_k,
        share_expert_dim=arguments.expert_dim,
        share_q_dim=arguments.hidden // 3,
        head_dim=arguments.head_dim,
        moe_layers_enum=list(range(1, arguments.layers)),
    )
    torch.manual_seed(arguments.seed)
    return Step3TextForCausalLM(config).to(getattr(torch, arguments.dtype)).eval()


def check_agreement(model: Step3TextForCausalLM, ids: Tensor) -> None:
    """Ends the benchmark unless every way gives the same logits.

    Only in float32: in bfloat16 a last bit decides between experts that are nearly tied.
    """
    if model.dtype != torch.float32:
        return
    logits = {way: run(model, ids, forward)[0] for way, forward in WAYS.items()}
    for way, found in logits.items():
        error = (found - logits["step3"]).abs().max().item()
        if error > 1e-4:
            sys.exit(f"{way!r} differs from step3 by {error:.2g} in its logits: nothing was measured")


@torch.inference_mode()
def run(model: Step3TextForCausalLM, ids: Tensor, forward: Forward) -> tuple[Tensor, float, float]:
    """The last token's logits, seconds on the clock, and seconds of the processor."""
    original = Step3MoE.forward
    Step3MoE.forward = forward  # type: ignore[method-assign]
    try:
        clock, processor = time.perf_counter(), time.process_time()
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits
        return logits, time.perf_counter() - clock, time.process_time() - processor
    finally:
        Step3MoE.forward = original  # type: ignore[method-assign]


def measure(model: Step3TextForCausalLM, ids: Tensor, rounds: int, seed: int) -> list[Timing]:
    """Times every way once a round, in a drawn order; the round before the first is not counted."""
    order = random.Random(seed)
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for number in track(range(rounds + 1), "Measuring ...", console=Console(stderr=True), transient=True):
        for way in order.sample(list(WAYS), len(WAYS)):
            _, seconds, cpu_seconds = run(model, ids, WAYS[way])
            if number:
                times[way].append((seconds, cpu_seconds))
    medians = {way: [statistics.median(kind) for kind in zip(*of, strict=True)] for way, of in times.items()}
    own = medians["step3"]
    return [
        Timing(way, seconds, cpu_seconds, seconds / own[0], cpu_seconds / own[1])
        for way, (seconds, cpu_seconds) in medians.items()
    ]


def show(timings: list[Timing], title: str) -> None:
    table = Table(title=title)
    for column in ("experts", "clock s", "x step3", "processor s", "x step3"):
        table.add_column(column, justify="left" if column == "experts" else "right")
    for timing in timings:
        table.add_row(
            timing.way,
            f"{timing.seconds:.3f}",
            f"{timing.ratio:.2f}",
            f"{timing.cpu_seconds:.3f}",
            f"{timing.cpu_ratio:.2f}",
        )
    Console().print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {
        "tokens": (1024, "of the prompt"),
        "hidden": (768, "hidden size"),
        "layers": (4, "the first is dense, the others have experts"),
        "experts": (24, "in each layer that has them"),
        "top-k": (3, "experts of a token"),
        "expert-dim": (512, "intermediate size of an expert and of the shared one"),
        "dense-dim": (2048, "intermediate size of the dense layer"),
        "heads": (8, "query heads"),
        "head-dim": (128, "channels of a head"),
        "rounds": (7, "timed, after one that is not"),
        "seed": (0, "of weights, prompt and order"),
        "threads": (torch.get_num_threads(), "that torch may use"),
    }
    for name, (default, meaning) in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} (default {default})")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="(default float32)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write sizes and times to FILE")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    model = build(arguments)
    ids = torch.randint(model.config.vocab_size, (1, arguments.tokens))
    check_agreement(model, ids)
    timings = measure(model, ids, arguments.rounds, arguments.seed)
    active = arguments.top_k / arguments.experts
    show(
        timings,
        f"Prefill of {arguments.tokens} tokens, {model.num_parameters() / 1e6:.0f} M parameters, "
        f"{active:.1%} of the experts for each token, {arguments.dtype}, {arguments.threads} threads",
    )
    if arguments.json:
        report = {
            "sizes": {name: value for name, value in vars(arguments).items() if name != "json"},
            "machine": {"processor": platform.machine(), "torch": torch.__version__},
            "timings": [asdict(timing) for timing in timings],
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

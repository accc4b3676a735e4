"""How fast `step3 simulate` is, whether its memory is flat, and what 10,000 cards cost.

    python benchmarks/simulator.py
    python benchmarks/simulator.py --only memory --json simulator.json

One core. A token-step is one sequence's part in one step, which makes one token. Seconds are of the
processor, which other programs at work hardly change, and in brackets on the clock. Every run is a process of
its own, so that its greatest memory is known.
"""

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from step3.plan.deployment import Deployment
from step3.plan.evaluate import Demand
from step3.plan.hardware import HardwareCatalogue
from step3.plan.models import find_model
from step3.plan.simulate import Scenario, simulate
from step3.plan.simulate.assemble import Load, planned_scenario
from step3.plan.topology import parse_topology
from step3.plan.workload import Contexts

GOAL_SECONDS = 10.0
GOAL_TOKENS = 1_000_000


def step3_on_h800(topology: str, batch: int, load: Load, **changes: Any) -> Scenario:
    """Step-3 on H800, nodes of eight cards, three lanes."""
    model, card, parsed = find_model("Step-3"), HardwareCatalogue()["H800"], parse_topology(topology)
    demand = Demand(model, model.precision, Contexts.fixed(1), 0.05)
    pods = changes.pop("pods", 1)
    scenario = planned_scenario(demand, Deployment(parsed, card, 8, card, 8), load, 3, batch, pods)
    return replace(scenario, **changes)


def measured(make: Callable[[], Scenario]) -> dict[str, float]:
    """Seconds and memory of one run, in a process of its own."""
    queue: Any = multiprocessing.get_context("fork").SimpleQueue()

    def work() -> None:
        scenario = make()
        cpu, wall = time.process_time(), time.perf_counter()
        result = simulate(scenario)
        queue.put(
            {
                "cpu_s": time.process_time() - cpu,
                "wall_s": time.perf_counter() - wall,
                "tokens": result.tokens / result.copies,
                "all_tokens": result.tokens,
                "simulated_s": result.seconds + scenario.warmup,
                "events": result.events,
                "tgs": result.tgs,
                "tpot_ms": (result.token.mean or 0.0) * 1e3,
                "cards": result.cards,
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    values: dict[str, float] = queue.get()
    process.join()
    return values


def speed() -> list[dict[str, Any]]:
    """A million token-steps of 2A2F, by the size of the micro-batch."""
    rows = []
    print("One million token-steps of 2A2F, three lanes, 4K of context")
    for batch in (2048, 512, 192, 96):
        load, seconds = Load("4K", output="lognormal(700,0.8)"), GOAL_TOKENS / (3 * batch) * 0.0385
        values = measured(lambda: step3_on_h800("2A2F", batch, load, warmup=0.0, duration=seconds))  # noqa: B023
        million = {
            name: values[name] / values["tokens"] * GOAL_TOKENS for name in ("cpu_s", "wall_s", "events")
        }
        rows.append({"batch": batch, **million, "tokens": values["tokens"]})
        print(
            f"  micro-batch {batch:>5}: {million['cpu_s']:6.2f} s ({million['wall_s']:6.2f}), "
            f"{million['events'] / 1e6:5.2f} M events, {values['cpu_s'] / values['events'] * 1e6:.2f} µs each"
        )
    met = rows[0]["cpu_s"] <= GOAL_SECONDS
    print(f"  goal {GOAL_SECONDS:g} s at the paper's micro-batch of 2,048: {'met' if met else 'NOT met'}")
    return rows


def memory() -> list[dict[str, Any]]:
    """The same load for longer and longer."""
    rows = []
    print("Memory against simulated time: 2A2F, Poisson arrivals, lengths and jitter at random")
    for seconds in (60.0, 240.0, 960.0):
        load = Load(prompt="lognormal(2K,0.8)", output="lognormal(200,0.8)", arrivals="poisson:60")
        values = measured(
            lambda: step3_on_h800("2A2F", 512, load, warmup=0.0, duration=seconds, jitter=0.05)  # noqa: B023
        )
        rows.append({"seconds": seconds, **values})
        print(
            f"  {seconds:>5.0f} s: {values['peak_mib']:6.1f} MiB at most, "
            f"{values['events'] / 1e6:6.2f} M events, {values['cpu_s']:6.1f} s ({values['wall_s']:6.1f})"
        )
    growth = rows[-1]["peak_mib"] / rows[0]["peak_mib"] - 1
    print(f"  16 times the time takes {growth:+.1%} memory")
    return rows


def scale() -> list[dict[str, Any]]:
    """Ten thousand cards, as pods and as one pool."""
    rows = []
    print("10,000 cards, 4K of context, all seats taken: one simulated second")
    pool, load = "625A625F:ep5xr125", Load("4K")
    cases: tuple[tuple[str, Callable[[], Scenario]], ...] = (
        (
            "312 pods of 2A2F, one simulated",
            lambda: step3_on_h800("2A2F", 2048, load, pods=312, warmup=1.0, duration=5.0),
        ),
        (
            f"{pool}, 5 of 625 instances simulated",
            lambda: step3_on_h800(pool, 320_000, load, warmup=0.2, duration=1.0),
        ),
        (
            f"{pool}, every instance simulated",
            lambda: step3_on_h800(pool, 320_000, load, warmup=0.2, duration=1.0, simulate_instances=625),
        ),
    )
    for name, make in cases:
        values = measured(make)
        rows.append({"case": name, **values})
        seconds = values["simulated_s"]
        print(
            f"  {name}: {values['cpu_s'] / seconds:6.2f} s ({values['wall_s'] / seconds:6.2f}), "
            f"{values['peak_mib']:.0f} MiB; {values['cards']:,.0f} cards, TPOT {values['tpot_ms']:.2f} ms, "
            f"TGS {values['tgs']:,.0f}"
        )
    return rows


def main() -> None:
    """Run the benchmarks that were asked for."""
    parts = {"speed": speed, "memory": memory, "scale": scale}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", choices=parts, action="append", help="one part (repeatable); all by default"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file", metavar="FILE")
    arguments = parser.parse_args()
    figures = {name: part() for name, part in parts.items() if name in (arguments.only or parts)}
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()

"""The simulator against the AFD engine: the same loads, simulated and run on this machine.

    python benchmarks/simulator_against_runs.py --out runs.json --picture runs.png
    python benchmarks/simulator_against_runs.py --calibration runs.json --case 2A2F --case 3A --out runs.json
    python benchmarks/simulator_against_runs.py --again runs.json

First this machine is calibrated (`afd_calibration.py`: one attention and one FFN instance, nine loads for one
lane and one for three). Then loads that the calibration has not seen are run on deployments of up to four
instances on this host's cores, each bound to a core but where a case says otherwise, and simulated with the
calibrated times, the same requests at the same times, and the same rules of batching. Printed are the mean
TPOT over requests and the output tokens a second from the first request to the last token; of three runs the
median. A run during which others had more than 4 % of the cores' time does not count and is repeated, twice
at most; a case without a run that counts is shown and not judged. `--calibration` takes an earlier output's
calibration, and shows its cases beside the new ones; `--again` simulates an earlier output's cases anew,
without running them.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from afd_calibration import CHUNK, calibrate
from afd_run import Asked, Deployment, write_network
from rich.console import Console
from rich.table import Table

from step3.plan.simulate import Cards, Result, Scenario, simulate
from step3.plan.simulate.measured import read_measured
from step3.plan.simulate.requests import Trace
from step3.plan.topology import Topology, parse_topology

BAR = 0.10
RUNS = 3
MOST_RUNS = 5
MOST_FOREIGN = 0.04
"""Share of the cores' time that others may have during a run that counts."""


@dataclass(frozen=True)
class Case:
    """A deployment and a load."""

    topology: str
    lanes: int
    load: tuple[Asked, ...]
    words: str
    is_bound: bool = True
    """Each instance to a core; else they wander as the kernel has them."""

    @property
    def name(self) -> str:
        wandering = "" if self.is_bound else ", unbound"
        return f"{self.topology}, {self.lanes} lane{'s' * (self.lanes > 1)}, {self.words}{wandering}"

    @property
    def shape(self) -> Topology:
        return parse_topology(self.topology)

    @property
    def seats(self) -> int:
        """Sequences of an attention instance."""
        return 96


def at_once(count: int, prompt: int, output: int = 64) -> tuple[tuple[Asked, ...], str]:
    """All requests at the beginning."""
    return (Asked(0.0, prompt, output),) * count, f"{count} × ({prompt} + {output})"


def as_they_come(count: int, rate: float, seed: int) -> tuple[tuple[Asked, ...], str]:
    """A Poisson process of requests of many lengths."""
    draw = np.random.default_rng(seed)
    times = np.cumsum(draw.exponential(1 / rate, count)) - 1 / rate
    prompts = np.clip(draw.lognormal(np.log(100), 0.7, count), 16, 600)
    outputs = np.clip(draw.lognormal(np.log(50), 0.5, count), 8, 160)
    load = tuple(
        Asked(max(float(at), 0.0), int(prompt), int(output))
        for at, prompt, output in zip(times, prompts, outputs, strict=True)
    )
    return load, f"{count} Poisson, {rate:g}/s"


CASES = tuple(
    Case(topology, lanes, *load, *bound)
    for topology, lanes, load, *bound in (
        ("1A1F", 1, at_once(24, 128)),
        ("1A1F", 1, at_once(6, 900)),
        ("1A1F", 2, at_once(32, 256)),
        ("1A1F", 3, at_once(96, 64)),
        ("1A1F", 4, at_once(32, 400)),
        ("1A1F", 3, as_they_come(48, 12.0, 1)),
        ("2A1F", 2, at_once(32, 128)),
        ("2A1F", 3, as_they_come(48, 12.0, 2)),
        ("1A2F", 2, at_once(32, 128)),
        ("1A2F:tp2", 3, at_once(24, 200)),
        ("2A2F", 2, at_once(48, 96)),
        ("3A1F", 1, at_once(24, 128)),
        ("1A1F", 2, at_once(24, 128), False),
        ("2A1F", 2, at_once(24, 200), False),
    )
)


def measure(folder: Path, case: Case) -> list[dict[str, float]]:
    """Runs of a case: those in which others left the cores alone, or if there is none the quietest."""
    found: list[dict[str, float]] = []
    with Deployment(
        folder, case.topology, case.lanes, case.seats, CHUNK * case.lanes, bind_cores=case.is_bound
    ) as deployment:
        while len(found) < MOST_RUNS and len(quiet(found)) < RUNS:
            [run] = deployment.play([case.load])
            found.append({"tpot": run.tpot, "throughput": run.throughput, "foreign": run.foreign})
    return quiet(found) or [min(found, key=lambda one: one["foreign"])]


def quiet(runs: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    return [one for one in runs if one["foreign"] <= MOST_FOREIGN]


def simulated(case: Case, times: Mapping[str, Any]) -> Result:
    """The same load, simulated with the times of a calibration, which has them by sharding."""
    shape = case.shape
    experts, slices = sharding(shape)
    with tempfile.TemporaryDirectory() as folder:
        calibrated, trace = Path(folder) / "times.yaml", Path(folder) / "load.jsonl"
        calibrated.write_text(json.dumps(times[f"{experts}x{slices}"]))
        lines = (
            {"arrival": one.at, "prompt_tokens": one.prompt, "output_tokens": one.output} for one in case.load
        )
        trace.write_text("\n".join(map(json.dumps, lines)))
        measured, arrivals = read_measured(calibrated), Trace(trace)
        assert measured.host is not None
        scenario = Scenario(
            topology=shape,
            cards=Cards(1, 1),
            times=measured,
            prefill_core=measured.prefill_core,
            arrivals=arrivals,
            lengths=arrivals.lengths(),
            lanes=case.lanes,
            seats=-(-case.seats // case.lanes),
            prefills=True,
            chunk=CHUNK,
            step_tokens=CHUNK,
            host=replace(measured.host, is_bound=case.is_bound),
            steady=False,
            warmup=0.0,
            duration=None,
        )
        return simulate(scenario)


def compared(case: Case, runs: Sequence[dict[str, float]], times: Mapping[str, Any]) -> dict[str, Any]:
    """What came of a case's runs, those that count if there are any, and of its simulation."""
    runs = quiet(runs) or runs
    result = simulated(case, times)
    tpot = statistics.median(one["tpot"] for one in runs)
    throughput = statistics.median(one["throughput"] for one in runs)
    mean = result.request_mean.mean
    assert mean is not None
    return {
        "case": case.name,
        "runs": list(runs),
        "measured": {"tpot": tpot, "throughput": throughput},
        "simulated": {"tpot": mean, "throughput": result.tokens_per_second},
        "error": {"tpot": mean / tpot - 1, "throughput": result.tokens_per_second / throughput - 1},
        "counts": runs == quiet(runs),
    }


def render(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(
        "deployment and load",
        "TPOT ms",
        "simulated",
        "error",
        "tokens/s",
        "simulated",
        "error",
        "spread",
        "others",
        title="The simulator against runs",
    )
    for row in rows:
        measured, found, error = row["measured"], row["simulated"], row["error"]
        tpots = [one["tpot"] for one in row["runs"]]
        table.add_row(
            row["case"] if row["counts"] else f"({row['case']})",
            f"{measured['tpot'] * 1e3:.1f}",
            f"{found['tpot'] * 1e3:.1f}",
            f"{error['tpot']:+.1%}",
            f"{measured['throughput']:.0f}",
            f"{found['throughput']:.0f}",
            f"{error['throughput']:+.1%}",
            f"{(max(tpots) - min(tpots)) / measured['tpot']:.0%}",
            f"{max(one['foreign'] for one in row['runs']):.0%}",
        )
    return table


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each figure: mean and greatest error, and how many are within the bar."""
    judged = [row for row in rows if row["counts"]]
    lines = [f"not judged, since others had the cores: {row['case']}" for row in rows if not row["counts"]]
    if not judged:
        return "\n".join(lines)
    for name, words in (("tpot", "mean TPOT"), ("throughput", "throughput")):
        errors = [abs(row["error"][name]) for row in judged]
        within = sum(error <= BAR for error in errors)
        lines.append(
            f"{words}: error {statistics.mean(errors):.1%} on average, {max(errors):.1%} at most; "
            f"{within} of {len(errors)} within {BAR:.0%}"
        )
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Simulated against measured, with the band of the bar."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    rows = [row for row in rows if row["counts"]]

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, name, label, scale in zip(
        figure.subplots(1, 2),
        ("tpot", "throughput"),
        ("mean TPOT, ms", "output tokens a second"),
        (1e3, 1.0),
        strict=True,
    ):
        measured = [row["measured"][name] * scale for row in rows]
        found = [row["simulated"][name] * scale for row in rows]
        ends = [0.8 * min(measured + found), 1.25 * max(measured + found)]
        axes.fill_between(
            ends, [end * (1 - BAR) for end in ends], [end * (1 + BAR) for end in ends], color="#dddddd", lw=0
        )
        axes.plot(ends, ends, color="#888888", lw=1)
        for number, topology in enumerate(dict.fromkeys(one.topology for one in CASES)):
            at = [place for place, row in enumerate(rows) if row["case"].split(", ")[0] == topology]
            x, y = [measured[place] for place in at], [found[place] for place in at]
            axes.scatter(x, y, s=36, marker="osD^vP"[number], label=topology, zorder=3, alpha=0.85)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        axes.set(xlabel=f"measured: {label}", ylabel=f"simulated: {label}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.legend(fontsize=8)
    figure.suptitle(f"Simulated against measured; the band is ±{BAR:.0%}")
    figure.savefig(path, dpi=110)


def main(
    case: Annotated[
        list[str] | None, typer.Option(help="Cases whose names begin so; all by default.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Take the calibration of an earlier output.", metavar="FILE")
    ] = None,
    again: Annotated[
        Path | None, typer.Option(help="Simulate an earlier output's loads anew.", metavar="FILE")
    ] = None,
    network: Annotated[Path | None, typer.Option(help="Keep the network's weights in this folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write JSON, too.", metavar="FILE")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw a PNG, too.", metavar="FILE")] = None,
) -> None:
    """Hold the simulator against measured runs of the AFD engine."""
    torch.set_num_threads(1)
    chosen = [one for one in CASES if case is None or any(one.name.startswith(each) for each in case)]
    if not chosen:
        raise typer.BadParameter("no case begins so; there are " + "; ".join(one.name for one in CASES))
    times: dict[str, Any] | None = None
    before: dict[str, Any] = {}
    if source := again or calibration:
        earlier = json.loads(source.read_text())
        times = earlier["times"]
        before = {row["case"]: row["runs"] for row in earlier["cases"]}
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = network or Path(temporary)
        if not again and not (folder / "config.json").exists():
            write_network(folder)
        if times is None:
            shardings = {sharding(one.shape) for one in CASES}
            times = calibrate(folder, sorted(shardings))
            keep(out, times, rows)
        for one in CASES:
            if one.name in before:
                rows[one.name] = compared(one, before[one.name], times)
        for one in chosen if again is None else ():
            runs = measure(folder, one)
            if quiet(runs) or not quiet(before.get(one.name, [])):
                rows[one.name] = compared(one, runs, times)
            keep(out, times, rows)
            print(f"{one.name}: done", file=sys.stderr)
    ordered = [rows[one.name] for one in CASES if one.name in rows]
    Console(width=150).print(render(ordered))
    print(verdict(ordered))
    if picture is not None:
        draw(ordered, picture)


def sharding(shape: Topology) -> tuple[int, int]:
    return shape.expert_parallel, shape.tensor_parallel


def keep(out: Path | None, times: Mapping[str, Any], rows: Mapping[str, Any]) -> None:
    """Writes what there is so far, so that it is there when the rest is cut off."""
    if out is not None:
        out.write_text(json.dumps({"times": times, "cases": list(rows.values())}, indent=1))


if __name__ == "__main__":
    typer.run(main)

"""`step3 simulate`: a deployment serving requests, event by event."""

from pathlib import Path
from typing import Annotated

import typer

_DEPLOYMENT = "Deployment"
_LOAD = "Load"
_TROUBLE = "What goes wrong"
_RUN = "Run"
_OUTPUT = "Output"


def simulate(
    model: Annotated[
        str,
        typer.Option(
            help="A model's name (Step-3, DSv3 …), or the path of its config.json.",
            rich_help_panel=_DEPLOYMENT,
        ),
    ] = "Step-3",
    hardware: Annotated[
        str,
        typer.Option(help="Card for both sides: H800, H20 …", metavar="NAME", rich_help_panel=_DEPLOYMENT),
    ] = "H800",
    attention: Annotated[
        str | None,
        typer.Option(
            help="Card for attention, instead of --hardware.", metavar="NAME", rich_help_panel=_DEPLOYMENT
        ),
    ] = None,
    ffn: Annotated[
        str | None,
        typer.Option(
            help="Card for the FFN, instead of --hardware.", metavar="NAME", rich_help_panel=_DEPLOYMENT
        ),
    ] = None,
    hardware_file: Annotated[
        list[Path] | None,
        typer.Option(
            help="A YAML file with your own cards (repeatable).", metavar="FILE", rich_help_panel=_DEPLOYMENT
        ),
    ] = None,
    efficiency: Annotated[
        str,
        typer.Option(
            help="'catalogue' takes each card's own; 'table9' what the Step-3 paper measured.",
            rich_help_panel=_DEPLOYMENT,
        ),
    ] = "catalogue",
    times: Annotated[
        Path | None,
        typer.Option(
            help="Measured stage times (YAML, see docs/simulator.md), instead of rooflines.",
            metavar="FILE",
            rich_help_panel=_DEPLOYMENT,
        ),
    ] = None,
    topology: Annotated[
        str,
        typer.Option(
            help="2A2F, 3A4F:ep2xtp2, 2A4F:ep2xr2 …; 1A0F keeps both together.", rich_help_panel=_DEPLOYMENT
        ),
    ] = "2A2F",
    attention_instance: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Cards of an attention instance; a whole node by default.",
            rich_help_panel=_DEPLOYMENT,
        ),
    ] = None,
    ffn_instance: Annotated[
        int | None,
        typer.Option(
            min=1, help="Cards of an FFN instance; a whole node by default.", rich_help_panel=_DEPLOYMENT
        ),
    ] = None,
    pods: Annotated[
        int,
        typer.Option(
            min=1, help="Deployments like this one, requests spread at random.", rich_help_panel=_DEPLOYMENT
        ),
    ] = 1,
    lanes: Annotated[
        int, typer.Option(min=1, help="Micro-batches in flight.", rich_help_panel=_DEPLOYMENT)
    ] = 3,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Sequences of a micro-batch over all attention cards; by default what --tpot allows.",
            rich_help_panel=_DEPLOYMENT,
        ),
    ] = None,
    tpot: Annotated[
        float,
        typer.Option(
            help="Target that fills the batch, without --batch.", metavar="MS", rich_help_panel=_DEPLOYMENT
        ),
    ] = 50.0,
    weights: Annotated[
        str | None,
        typer.Option(help="Type of the weights: bf16, fp8, int8, fp4.", rich_help_panel=_DEPLOYMENT),
    ] = None,
    kv: Annotated[
        str | None, typer.Option(help="Type of the KV cache: bf16 or fp8.", rich_help_panel=_DEPLOYMENT)
    ] = None,
    drafts: Annotated[
        int, typer.Option(min=0, max=16, help="Tokens drafted a step (MTP).", rich_help_panel=_DEPLOYMENT)
    ] = 0,
    acceptance: Annotated[
        float,
        typer.Option(min=0, max=1, help="Chance that a draft is accepted.", rich_help_panel=_DEPLOYMENT),
    ] = 0.7,
    cache_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens that a card's cache holds, instead of what its memory does.",
            rich_help_panel=_DEPLOYMENT,
        ),
    ] = None,
    headroom: Annotated[
        float,
        typer.Option(
            help="Share of the cache that stays free when a request is taken, for others to grow into.",
            rich_help_panel=_DEPLOYMENT,
        ),
    ] = 0.01,
    latency: Annotated[
        float | None,
        typer.Option(
            min=0, help="What a message takes beyond its bytes.", metavar="US", rich_help_panel=_DEPLOYMENT
        ),
    ] = None,
    merge: Annotated[
        str,
        typer.Option(
            help="Calls that the FFN computes together: what waits of a 'layer', or of a 'lane' in it, or "
            "'none'; 'all' waits for the lane of every attention instance.",
            rich_help_panel=_DEPLOYMENT,
        ),
    ] = "layer",
    gather: Annotated[
        float,
        typer.Option(
            min=0, help="What an idle FFN waits for more calls.", metavar="US", rich_help_panel=_DEPLOYMENT
        ),
    ] = 0.0,
    arrivals: Annotated[
        str,
        typer.Option(
            help="closed (every seat taken), closed:N (always N under way), poisson:R or constant:R "
            "(requests a second), or a JSONL trace.",
            rich_help_panel=_LOAD,
        ),
    ] = "closed",
    context: Annotated[
        str | None,
        typer.Option(
            help="Mean context in decoding: 8K, uniform(1K,16K) …; 8K by default.", rich_help_panel=_LOAD
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Prompt lengths, instead of --context: 4K, lognormal(2K,0.8) …", rich_help_panel=_LOAD
        ),
    ] = None,
    output: Annotated[
        str,
        typer.Option(help="Output lengths: 1K, uniform(100,2K), lognormal(500,1) …", rich_help_panel=_LOAD),
    ] = "1K",
    prefill: Annotated[
        bool,
        typer.Option(
            "--prefill/--no-prefill",
            help="Compute prompts here, in chunks beside the decoding; else they come with their cache.",
            rich_help_panel=_LOAD,
        ),
    ] = False,
    chunk: Annotated[
        int,
        typer.Option(
            min=1,
            help="Prompt tokens that a card computes in a step, also to compute anew what was lost.",
            metavar="TOKENS",
            rich_help_panel=_LOAD,
        ),
    ] = 512,
    step_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of a lane's step on a card at most: prompts get what decoding leaves of them.",
            metavar="TOKENS",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    straggler: Annotated[
        list[str] | None,
        typer.Option(
            help="attention:0=1.2, wire:1=2, ffn=1.3: so many times as slow (repeatable).",
            metavar="WHO=FACTOR",
            rich_help_panel=_TROUBLE,
        ),
    ] = None,
    jitter: Annotated[
        float,
        typer.Option(
            min=0, help="Standard deviation of every call's time over its mean.", rich_help_panel=_TROUBLE
        ),
    ] = 0.0,
    fail: Annotated[
        list[str] | None,
        typer.Option(
            help="ffn:0@10, attention:1@12.5: an instance dies at that second (repeatable).",
            metavar="WHO@SECOND",
            rich_help_panel=_TROUBLE,
        ),
    ] = None,
    detect: Annotated[
        float,
        typer.Option(min=0, help="Seconds until a death is known.", metavar="S", rich_help_panel=_TROUBLE),
    ] = 0.3,
    restart: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds until a dead instance serves again.", metavar="S", rich_help_panel=_TROUBLE
        ),
    ] = 60.0,
    duration: Annotated[
        float | None,
        typer.Option(help="Simulated seconds that are counted.", metavar="S", rich_help_panel=_RUN),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="No more than so many requests come; without --duration until all have ended.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(min=0, help="Simulated seconds before the counting.", metavar="S", rich_help_panel=_RUN),
    ] = None,
    empty: Annotated[
        bool,
        typer.Option(
            "--empty", help="Begin a closed loop with prompts, not in mid-decoding.", rich_help_panel=_RUN
        ),
    ] = False,
    simulate_instances: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Attention instances simulated, the others taken as their equals; all up to 16 by default.",
            metavar="N",
            rich_help_panel=_RUN,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all random numbers.", rich_help_panel=_RUN)] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=_OUTPUT)
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write a trace for ui.perfetto.dev.", metavar="FILE", rich_help_panel=_OUTPUT),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            help="Draw the pipeline (Gantt) and the run over time, as PNG and SVG.",
            metavar="DIR",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    trace_from: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Second at which trace and Gantt begin; with the counting by default.",
            metavar="S",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    trace_for: Annotated[
        float, typer.Option(min=0.001, help="How much they show.", metavar="MS", rich_help_panel=_OUTPUT)
    ] = 100.0,
) -> None:
    """Simulate a deployment serving requests: latency percentiles, throughput, bubbles, and what limits it.

    Every call of every lane goes through attention, wire, FFN and wire, layer after layer; requests come, are
    batched continuously under the cache's limit, and leave. Times are the planner's rooflines, or measured.

    \b
    step3 simulate --topology 2A2F --lanes 3 --batch 2048 --context 4096
    step3 simulate --arrivals poisson:40 --prompt "lognormal(2K,0.8)" --prefill --chunk 256
    step3 simulate --topology 2A4F:ep2xr2 --fail ffn:0@10 --duration 30
    """
    import json
    import sys
    from dataclasses import replace

    from rich.console import Console
    from rich.progress import Progress

    from step3.plan.simulate import Result, Scenario, report
    from step3.plan.simulate import simulate as run
    from step3.plan.simulate.assemble import (
        Load,
        closed_form,
        measured_scenario,
        planned_scenario,
        with_run,
    )
    from step3.plan.simulate.cache import CacheRoom
    from step3.plan.simulate.errors import SimulationError
    from step3.plan.simulate.faults import Faults, parse_failures, parse_stragglers
    from step3.plan.simulate.loss import loss
    from step3.plan.simulate.measured import read_measured
    from step3.plan.simulate.pipeline import Merge
    from step3.plan.simulate.scenario import Cards
    from step3.plan.simulate.trace import Recording, write_trace
    from step3.plan.topology import parse_topology

    shape = parse_topology(topology)
    load = Load(context, prompt, output, arrivals)

    def planned() -> Scenario:
        from step3.plan.deployment import Deployment
        from step3.plan.evaluate import Demand
        from step3.plan.hardware import HardwareCatalogue
        from step3.plan.models import find_model
        from step3.plan.roofline import Speculation
        from step3.plan.workload import Contexts

        catalogue = HardwareCatalogue(hardware_file or [])
        if efficiency == "table9":
            from step3.plan.paper.measured import with_table9_efficiencies

            catalogue = with_table9_efficiencies(catalogue)
        elif efficiency != "catalogue":
            raise SimulationError(f"--efficiency is 'catalogue' or 'table9', not {efficiency!r:.40}")
        for_attention, for_ffn = catalogue[attention or hardware], catalogue[ffn or hardware]
        if latency is not None:
            for_attention = replace(for_attention, network_latency=latency * 1e-6)
            for_ffn = replace(for_ffn, network_latency=latency * 1e-6)
        chosen = find_model(model, weights)
        precision = chosen.precision if kv is None else replace(chosen.precision, kv=kv, kv_windowed=kv)
        demand = Demand(
            chosen,
            precision,
            Contexts.fixed(1),
            tpot * 1e-3,
            Speculation(drafts, acceptance if drafts else 0.0),
        )
        deployment = Deployment(
            shape,
            for_attention,
            attention_instance or for_attention.cards_per_node,
            for_ffn,
            0 if shape.is_monolith else ffn_instance or for_ffn.cards_per_node,
        )
        return planned_scenario(demand, deployment, load, lanes, batch, pods)

    def measured(path: Path) -> Scenario:
        if batch is None:
            raise SimulationError("with --times the batch must be given: --batch")
        cards = Cards(attention_instance or 1, 0 if shape.is_monolith else ffn_instance or 1)
        return measured_scenario(read_measured(path), shape, cards, load, lanes, batch, pods)

    scenario = planned() if times is None else measured(times)
    if cache_tokens is not None:
        scenario = replace(scenario, room=CacheRoom(cache_tokens))
    if merge not in list(Merge):
        raise SimulationError(f"--merge is one of {', '.join(Merge)}, not {merge!r:.40}")
    scenario = replace(
        scenario,
        prefills=prefill,
        chunk=chunk,
        step_tokens=step_tokens,
        headroom=headroom,
        merge=Merge(merge),
        gather=gather * 1e-6,
        jitter=jitter,
        faults=Faults(parse_stragglers(straggler or []), parse_failures(fail or []), detect, restart),
        simulate_instances=simulate_instances,
        steady=not empty,
        seed=seed,
    )
    scenario = with_run(scenario, duration, requests, warmup)
    recording = Recording() if trace is not None or plots is not None else None
    begin = scenario.warmup if trace_from is None else trace_from

    def simulated(what: str, chosen: Scenario, recorder: Recording | None) -> Result:
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task(what, total=1.0)
            return run(
                chosen,
                lambda share: bar.update(task, completed=share),
                recorder,
                begin,
                begin + trace_for * 1e-3,
            )

    # The planner's formula knows of no cores that instances share.
    closed = closed_form(scenario) if scenario.host is None else None
    result = simulated("simulating", scenario, recording)
    cost = None
    if scenario.faults.failures:
        undisturbed = replace(scenario, faults=replace(scenario.faults, failures=()))
        cost = loss(result, simulated("the same without failures", undisturbed, None))
    written = []
    if recording is not None and trace is not None:
        write_trace(trace, recording, shape, scenario.simulated)
        written.append(trace)
    if recording is not None and plots is not None:
        from step3.plan.simulate.plots import draw_gantt, draw_timeline

        title = f"{scenario.topology}, {scenario.lanes} lanes"
        written += [*draw_gantt(recording, title, plots), *draw_timeline(result, title, plots)]
    if as_json:
        print(json.dumps(report.as_json(scenario, result, closed, cost), indent=1))
        return
    console = Console()
    cards = hardware if attention == ffn else f"{attention or hardware} and {ffn or hardware}"
    title = f"{model} on {cards}" if times is None else f"Stage times of {times.name}"
    console.print(report.render(title, scenario, result, closed))
    if cost is not None:
        console.print(report.render_loss(cost, restart, detect))
    for path in written:
        console.print(f"wrote {path}", highlight=False)

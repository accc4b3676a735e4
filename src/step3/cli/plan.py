"""`step3 plan`: what decoding costs, and which deployment is cheapest."""

from pathlib import Path
from typing import Annotated

import typer

LOAD = "What is served"
CARDS = "Cards"
SPACE = "Deployments to try"
OUTPUT = "Output"


def plan(
    model: Annotated[
        str,
        typer.Argument(help="A model's name (Step-3, DSv3, Qwen3 MoE …), or the path of its config.json."),
    ] = "Step-3",
    cards: Annotated[
        str,
        typer.Option(rich_help_panel=CARDS, help="Cards to choose from, for both sides.", metavar="NAMES"),
    ] = "H800,H20,A800,910B",
    attention: Annotated[
        str | None,
        typer.Option(rich_help_panel=CARDS, help="Cards for attention, instead of --cards.", metavar="NAMES"),
    ] = None,
    ffn: Annotated[
        str | None,
        typer.Option(rich_help_panel=CARDS, help="Cards for the FFN, instead of --cards.", metavar="NAMES"),
    ] = None,
    hardware: Annotated[
        list[Path] | None,
        typer.Option(
            rich_help_panel=CARDS, help="A YAML file with your own cards (repeatable).", metavar="FILE"
        ),
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=CARDS, help="USD an hour for a card: H800=1.6 (repeatable).", metavar="NAME=USD"
        ),
    ] = None,
    efficiency: Annotated[
        str,
        typer.Option(
            rich_help_panel=CARDS,
            help="'catalogue' takes each card's own; 'table9' what the Step-3 paper measured "
            "(H800, H20, A800).",
        ),
    ] = "catalogue",
    context: Annotated[
        str,
        typer.Option(
            rich_help_panel=LOAD,
            help="8K, or 4K:0.5,32K:0.5, or uniform(1K,16K), or lognormal(8K,0.7), or a JSONL trace.",
        ),
    ] = "8K",
    tpot: Annotated[
        float, typer.Option(rich_help_panel=LOAD, help="Most milliseconds from token to token.", metavar="MS")
    ] = 50.0,
    pipeline: Annotated[
        str,
        typer.Option(
            rich_help_panel=SPACE,
            help="Micro-batches in flight to try: 3 (attention, wire, FFN), 4 (each way of the wire).",
            metavar="N,…",
        ),
    ] = "3,4",
    weights: Annotated[
        str | None,
        typer.Option(rich_help_panel=LOAD, help="Type of attention and FFN weights: bf16, fp8, int8, fp4."),
    ] = None,
    kv: Annotated[
        str | None, typer.Option(rich_help_panel=LOAD, help="Type of the KV cache: bf16 or fp8.")
    ] = None,
    wire_out: Annotated[
        str, typer.Option(rich_help_panel=SPACE, help="Type of activations to the FFN.")
    ] = "fp8",
    wire_back: Annotated[
        str, typer.Option(rich_help_panel=SPACE, help="Type of partial sums back.")
    ] = "bf16",
    drafts: Annotated[
        int, typer.Option(rich_help_panel=LOAD, min=0, max=16, help="Tokens drafted a step (MTP).")
    ] = 0,
    acceptance: Annotated[
        float,
        typer.Option(
            rich_help_panel=LOAD, min=0, max=1, help="Chance that a draft is accepted after the one before."
        ),
    ] = 0.7,
    imbalance: Annotated[
        float,
        typer.Option(
            rich_help_panel=LOAD, min=1, help="Tokens of the busiest range of experts over the mean."
        ),
    ] = 1.0,
    text_only: Annotated[
        bool,
        typer.Option(
            "--text-only", rich_help_panel=LOAD, help="Leave the vision tower off the attention cards."
        ),
    ] = False,
    memory: Annotated[
        float, typer.Option(rich_help_panel=CARDS, help="Share of memory for weights and caches.")
    ] = 0.9,
    max_attention: Annotated[
        int, typer.Option(rich_help_panel=SPACE, min=1, max=64, help="Attention instances at most.")
    ] = 16,
    max_ffn: Annotated[
        int, typer.Option(rich_help_panel=SPACE, min=1, max=64, help="FFN instances at most.")
    ] = 8,
    max_cards: Annotated[
        int, typer.Option(rich_help_panel=SPACE, min=1, max=10_000, help="Cards at most.")
    ] = 1024,
    attention_instance: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=SPACE, min=1, help="Cards of an attention instance; a whole node by default."
        ),
    ] = None,
    ffn_instance: Annotated[
        int | None,
        typer.Option(rich_help_panel=SPACE, min=1, help="Cards of an FFN instance; a whole node by default."),
    ] = None,
    ffn_parallel: Annotated[
        str | None,
        typer.Option(rich_help_panel=SPACE, help="How FFN instances share the FFN: ep, tp, ep2xtp2 …"),
    ] = None,
    ffn_replicas: Annotated[
        int, typer.Option(rich_help_panel=SPACE, min=1, help="Copies of each FFN shard.")
    ] = 1,
    top: Annotated[
        int, typer.Option(rich_help_panel=OUTPUT, min=1, max=10_000, help="Deployments to list.")
    ] = 8,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print the plan as JSON.")
    ] = False,
    plots: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=OUTPUT, help="Draw plots into this folder, as PNG and SVG.", metavar="DIR"
        ),
    ] = None,
) -> None:
    """Find the cheapest deployment that decodes a model within a latency target.

    Tries attention and FFN instances in every ratio on every choice of
    cards, and deployments that keep the two together; fills each until the
    target or its memory ends the batch; ranks them by USD for a million
    tokens. Says what binds, what cannot work and why, whether to take
    attention and FFN apart at all, and what would change the answer.

    Times are rooflines: peaks and bandwidths of the cards, times the
    efficiencies in their entries (1.0 unless measured: step3 calibrate).

    step3 plan Step-3 --context 32K --tpot 50 --cards H800,H20

    step3 plan ./config.json --cards mine --hardware mine.yaml --json
    """
    import json
    import sys
    from dataclasses import replace

    from rich.console import Console
    from rich.progress import Progress

    from step3.plan import report
    from step3.plan.advice import sensitivity, verdict
    from step3.plan.errors import PlanError
    from step3.plan.evaluate import Demand
    from step3.plan.export import plan_json
    from step3.plan.hardware import HardwareCatalogue, parse_prices
    from step3.plan.models import find_model
    from step3.plan.plots import draw_plan
    from step3.plan.roofline import Speculation
    from step3.plan.search import Space, parse_lanes, search
    from step3.plan.summary import best_of_each_choice
    from step3.plan.workload import parse_contexts

    catalogue = HardwareCatalogue(hardware or [], parse_prices(price or []))
    if efficiency == "table9":
        from step3.plan.paper.measured import with_table9_efficiencies

        catalogue = with_table9_efficiencies(catalogue)
    elif efficiency != "catalogue":
        raise PlanError(f"--efficiency is 'catalogue' or 'table9', not {efficiency!r}")
    shape = find_model(model, weights)
    if text_only:
        shape = replace(shape, vision_parameters=0)
    precision = replace(shape.precision, wire_out=wire_out, wire_back=wire_back)
    if kv is not None:
        precision = replace(precision, kv=kv, kv_windowed=kv)
    demand = Demand(
        model=shape,
        precision=precision,
        contexts=parse_contexts(context),
        tpot=tpot * 1e-3,
        speculation=Speculation(drafts, acceptance if drafts else 0.0),
        imbalance=imbalance,
        memory_share=memory,
    )
    space = Space(
        attention=catalogue.choose(attention or cards),
        ffn=catalogue.choose(ffn or cards),
        most_attention=max_attention,
        most_ffn=max_ffn,
        most_cards=max_cards,
        attention_cards=attention_instance,
        ffn_cards=ffn_instance,
        lanes=parse_lanes(pipeline),
        sharding=ffn_parallel,
        replicas=ffn_replicas,
    )
    errors = Console(stderr=True)
    written = []
    with Progress(console=errors, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("deployments", total=None)
        ranking = search(demand, space, lambda done, all_: bar.update(task, completed=done, total=all_))
        best = ranking.best()
        bar.update(task, description="sensitivity", total=None)
        variations = sensitivity(demand, ranking)
        if plots is not None:
            written = draw_plan(
                demand,
                space,
                best,
                plots,
                lambda what, done, all_: bar.update(task, description=what, completed=done, total=all_),
            )
    advice = verdict(ranking)
    if as_json:
        print(json.dumps(plan_json(demand, space, ranking, advice, variations, model, top), indent=1))
        return
    console = Console()
    console.print(report.heading(demand, space))
    console.print(report.deployments_table(best_of_each_choice(ranking)[:top]))
    console.print(report.details(demand, best))
    console.print(report.verdict_text(advice))
    if ranking.infeasible:
        console.print(report.infeasible_table(ranking.infeasible))
    console.print(report.sensitivity_table(best, variations))
    console.print(report.launch_text(best, model))
    note = report.price_note([*space.attention, *space.ffn])
    if note:
        console.print(note, style="yellow")
    for path in written:
        console.print(f"wrote {path}", highlight=False)

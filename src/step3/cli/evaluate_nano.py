"""`step3 evaluate-nano`: how often the bundled model is right."""

import json
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table


def evaluate_nano(
    checkpoint: Path | None = typer.Argument(None, help="A checkpoint; left out, the bundled model."),
    each: int = typer.Option(200, min=1, max=100_000, help="Questions of each category."),
    seed: int = typer.Option(1, help="Which unseen questions."),
    dtype: str = typer.Option("float32", help="float32 or bfloat16."),
    wrong: int = typer.Option(0, min=0, help="Show this many wrong answers of each category."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Ask the bundled model questions that it never saw, and count right answers by category.

    The pictures' contents, numbers, sums and tool arguments are kept out of the training by a hash of
    what they hold.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoProcessor

    from step3.nano.architecture import BUNDLED
    from step3.nano.evaluation import GOALS, Score, evaluate, evaluation_samples

    folder = checkpoint or BUNDLED
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=getattr(torch, dtype))
    processor = AutoProcessor.from_pretrained(folder)
    asked = evaluation_samples(each, seed)
    console = Console(stderr=as_json)
    with Progress(console=console) as progress:
        bar = progress.add_task("Asking", total=len(asked))
        scores: dict[str, Score] = {}
        for done, scores in evaluate(model, processor, asked):  # noqa: B007 (the last are the result)
            progress.update(bar, completed=done)
    if as_json:
        print(
            json.dumps({name: {"right": s.right, "asked": s.asked} for name, s in scores.items()}, indent=1)
        )
        return
    table = Table("category", "right", "asked", "share")
    for name, score in sorted(scores.items()):
        share = f"{score.share:.1%}"
        goal = name in GOALS
        table.add_row(f"[bold]{name}[/]" if goal else name, str(score.right), str(score.asked), share)
    console.print(table)
    console.print("Bold: the categories that the training aims to get at least 90 % right.")
    for name, score in sorted(scores.items()):
        for one in score.wrong[:wrong]:
            console.print(f"{name}: {one['question']!r} expected {one['expected']!r}", markup=False)
            console.print(f"  said {one['said']!r}", markup=False)

"""`step3 train-nano`: the bundled model from nothing."""

import json
import time
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def train_nano(
    out: Path = typer.Argument(..., help="Folder for states, logs and, at the end, the checkpoint."),
    seed: int = typer.Option(0, help="The same seed gives the same samples in the same order."),
    begin: Path | None = typer.Option(
        None, "--from", help="Begin with this checkpoint's weights instead of from nothing."
    ),
    share: float = typer.Option(
        1.0, min=0.0001, max=10.0, help="Share of the default steps: 0.01 for a try."
    ),
) -> None:
    """Train the bundled model from nothing, on two cores.

    The tower learns to see and the decoder to read, side by side; then both train together. The command
    goes on where it was cut off. OUT/*.jsonl are the logs, OUT/model the checkpoint, which `step3
    evaluate-nano OUT/model` examines.
    """
    from step3.nano.export import export
    from step3.nano.training import DEFAULT_STAGES, begin_from, scaled, start_stage

    console = Console()
    if begin is not None and not (out / "begin.pt").exists():
        begin_from(begin, out)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[last]}"),
        console=console,
    ) as progress:
        for together in (("see", "read"), ("join",)):
            running = {}
            for name in together:
                stage = scaled(DEFAULT_STAGES[name], share)
                bar = progress.add_task(name, total=stage.steps, last="")
                running[name] = (start_stage(stage, out, seed), bar, stage)
            while running:
                time.sleep(1.0)
                for name, (processes, bar, stage) in list(running.items()):
                    line = _last_line(out / f"{name}.jsonl")
                    progress.update(bar, completed=line.get("step", 0), last=f"loss {line.get('loss', '-')}")
                    if processes is None or processes.join(timeout=0.01):
                        progress.update(bar, completed=stage.steps)
                        del running[name]
    folder = export(out / "join.pt", out / "model")
    console.print(f"Checkpoint: {folder}. Examine it with [bold]step3 evaluate-nano {folder}[/]")


def _last_line(log: Path) -> dict:
    if not log.exists():
        return {}
    lines = log.read_text().splitlines()
    return json.loads(lines[-1]) if lines else {}

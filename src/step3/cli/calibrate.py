"""`step3 calibrate`: measure this machine for the planner."""

from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    out: Annotated[
        Path | None, typer.Option(help="Write the entry to this YAML file.", metavar="FILE")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the entry.")] = "this-machine",
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; by default cuda where there is one.")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="USD an hour of one card.")] = None,
    network_gbit_s: Annotated[
        float | None, typer.Option(min=0.001, help="Network interface of one card, each way.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, max=60, help="Time for each measurement.")] = 0.7,
) -> None:
    """Measure this machine's peaks and what torch's kernels attain of them.

    Prints a hardware entry in YAML, about ten seconds later. Use it with

    step3 calibrate --out mine.yaml

    step3 plan MODEL --hardware mine.yaml --cards this-machine

    Let nothing else run meanwhile. The price and the network cannot be
    measured: give them, or the entry says that they are assumed.
    """
    import sys

    import yaml
    from rich.console import Console
    from rich.progress import Progress

    from step3.plan.calibrate import Calibration
    from step3.plan.errors import HardwareError

    if device is None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    calibration = Calibration(device, seconds)
    steps = list(calibration.steps())
    errors = Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=len(steps))
        for label, measure in steps:
            bar.update(task, description=label)
            measure()
            bar.advance(task)
    entry = calibration.entry(price, network_gbit_s)
    text = yaml.safe_dump({name: entry}, sort_keys=False, allow_unicode=True)
    if out is None:
        print(text, end="")
    else:
        try:
            out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise HardwareError(f"{out} cannot be written: {error.strerror}") from error
        errors.print(f"wrote {out}", highlight=False)
    for key, value in (("price", price), ("network", network_gbit_s)):
        if value is None:
            errors.print(f"The {key} is assumed; give yours.", style="yellow")

"""Collects the subcommands and turns expected errors into one line and exit code 1.

Every command's module is imported here, so none may import torch at its top: the work's imports stand
inside the command's function, and `step3 --help` stays instant.
"""

import sys

import typer
from rich.console import Console
from rich.text import Text

from step3.cli.bench import bench
from step3.cli.calibrate import calibrate
from step3.cli.chat import chat
from step3.cli.demo import demo
from step3.cli.deployment import topology, trace
from step3.cli.evaluate_nano import evaluate_nano
from step3.cli.generate import generate
from step3.cli.inspect import inspect
from step3.cli.join import attention, ffn
from step3.cli.paper import paper
from step3.cli.plan import plan
from step3.cli.quantize import quantize
from step3.cli.serve import serve
from step3.cli.simulate import simulate
from step3.cli.train_nano import train_nano
from step3.errors import Step3Error

app = typer.Typer(
    name="step3",
    help="Step3: run, inspect, quantize, train and plan StepFun's mixture-of-experts model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("attention")(attention)
app.command("bench")(bench)
app.command("calibrate")(calibrate)
app.command("chat")(chat)
app.command("demo")(demo)
app.command("evaluate-nano")(evaluate_nano)
app.command("ffn")(ffn)
app.command("generate")(generate)
app.command("inspect")(inspect)
app.command("paper")(paper)
app.command("plan")(plan)
app.command("quantize")(quantize)
app.command("serve")(serve)
app.command("simulate")(simulate)
app.command("topology")(topology)
app.command("trace")(trace)
app.command("train-nano")(train_nano)


def main() -> None:
    """Entry point of the `step3` command."""
    try:
        app()
    except Step3Error as error:
        Console(stderr=True).print("[bold red]error:[/]", Text(str(error)))
        sys.exit(1)

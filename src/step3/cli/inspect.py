"""`step3 inspect`: what a checkpoint weighs, whether it is whole, and where it fits."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from step3.cli.quantities import count, size

if TYPE_CHECKING:
    from step3.checkpoint.inventory import Fit, Inventory
    from step3.checkpoint.reader import Checkpoint


def inspect(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="A checkpoint's folder, or a config.json alone.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
) -> None:
    """Show parameters and bytes by part, the cost of a token, and what fits where.

    Of weights only the headers are read, so a checkpoint of any size takes a
    moment: each tensor's name, shape and dtype is compared with what
    config.json implies. A difference is listed, and the command exits with 1.
    A config.json without weights is enough for everything else.

    Active parameters are those that a text token is multiplied by: of the
    experts only the chosen ones, and no embedding table.

    What fits where assumes attention, embeddings and vision whole on each
    accelerator, the FFN spread over all, 90 % of the memory in use, and a KV
    cache in bf16 beside bf16 weights, in fp8 beside block-fp8.
    """
    from step3.checkpoint.config import read_config
    from step3.checkpoint.inventory import MACHINES, fits, take_inventory, this_machine
    from step3.checkpoint.reader import Checkpoint

    has_weights = checkpoint.is_dir() and any(checkpoint.glob("*.safetensors*"))
    opened = Checkpoint.open(checkpoint) if has_weights else None
    problems = opened.problems() if opened else []
    inventory = take_inventory(opened.config if opened else read_config(checkpoint))
    placed = [fit for machine in (*MACHINES, this_machine()) for fit in fits(inventory, machine)]
    if as_json:
        print(json.dumps(_as_json(inventory, placed, opened, problems), indent=2))
    else:
        console = Console()
        console.print(_parts(inventory))
        console.print(_summary(inventory))
        console.print(_machines(placed))
        console.print(_stored(opened, problems))
    if problems:
        raise typer.Exit(1)


def _parts(inventory: Inventory) -> Table:
    table = Table(title="Parameters by part", title_justify="left")
    table.add_column("part")
    for column in ("parameters", "share", "bf16", "block-fp8"):
        table.add_column(column, justify="right")
    rows = [(kind.value, amount) for kind, amount in inventory.kinds.items()]
    for name, amount in rows:
        share = f"{amount.parameters / inventory.total.parameters:.1%}"
        sizes = (size(amount.bytes["bf16"]), size(amount.bytes["block-fp8"]))
        table.add_row(name, count(amount.parameters), share, *sizes, end_section=name == rows[-1][0])
    total = inventory.total
    sizes = (size(total.bytes["bf16"]), size(total.bytes["block-fp8"]))
    table.add_row("all", count(total.parameters), "100%", *sizes, style="bold")
    return table


def _summary(inventory: Inventory) -> Text:
    kv = inventory.kv_bytes_per_token
    text, active = _round(inventory.text_parameters), _round(inventory.active_parameters)
    lines = [f"{text} parameters, {active} active per token"]
    if inventory.total.parameters != inventory.text_parameters:
        lines[0] += f", {_round(inventory.total.parameters)} with the vision tower"
    lines.append(f"KV cache per token: {kv['bf16']:,} bytes in bf16, {kv['fp8']:,} bytes in fp8")
    return Text("\n".join(lines) + "\n")


def _machines(placed: list[Fit]) -> Table:
    table = Table(title="What fits where: weights each, and tokens of KV cache in all", title_justify="left")
    table.add_column("machine")
    for column in ("bf16 each", "bf16 KV", "block-fp8 each", "fp8 KV"):
        table.add_column(column, justify="right")
    for bf16, fp8 in zip(placed[::2], placed[1::2], strict=True):
        cells = []
        for fit in (bf16, fp8):
            cells += [
                size(fit.bytes_each),
                "too small" if fit.kv_tokens is None else count(fit.kv_tokens),
            ]
        table.add_row(bf16.machine.name, *cells)
    return table


def _stored(opened: Checkpoint | None, problems: list[str]) -> Text:
    if opened is None:
        return Text("No weights here: computed from config.json.")
    stored = _storage(opened)
    dtypes = ", ".join(f"{number} {dtype}" for dtype, number in stored["tensors"].items())
    text = Text(f"On disk: {size(stored['bytes'])} in {stored['files']} file(s), tensors: {dtypes}.\n")
    if not problems:
        return text.append("Names, shapes and dtypes are what config.json implies.", style="green")
    text.append(f"{len(problems)} difference(s) from what config.json implies:\n", style="bold red")
    return text.append("\n".join(problems))


def _storage(opened: Checkpoint) -> dict[str, Any]:
    infos = opened.tensors.values()
    return {
        "files": len({info.file for info in infos}),
        "bytes": sum(info.nbytes for info in infos),
        "tensors": dict(Counter(info.dtype for info in infos)),
    }


def _as_json(
    inventory: Inventory, placed: list[Fit], opened: Checkpoint | None, problems: list[str]
) -> dict[str, Any]:
    return {
        "parameters": inventory.total.parameters,
        "text_parameters": inventory.text_parameters,
        "active_parameters_per_token": inventory.active_parameters,
        "bytes": inventory.total.bytes,
        "kv_bytes_per_token": inventory.kv_bytes_per_token,
        "parts": {
            kind.value: {"parameters": amount.parameters, "bytes": amount.bytes}
            for kind, amount in inventory.kinds.items()
        },
        "fits": [
            {
                "machine": fit.machine.name,
                "memory_bytes": fit.machine.count * fit.machine.memory,
                "weights": fit.weight_format,
                "weight_bytes_each": fit.bytes_each,
                "kv": fit.kv_format,
                "kv_tokens": fit.kv_tokens,
            }
            for fit in placed
        ],
        "stored": _storage(opened) if opened else None,
        "problems": problems,
    }


def _round(number: int) -> str:
    """As models are called: 316 B, 38 B; three digits where the number is small."""
    return f"{number / 1e9:.0f} B" if number >= 10e9 else count(number)

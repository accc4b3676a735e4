"""Summaries of the comparison with the paper."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from step3.plan.paper.cells import Cell

_PREFIXES = {"table": "table", "figure": "fig"}


def selected_cells(cells: Sequence[Cell], chosen: Sequence[tuple[str, int]]) -> list[Cell]:
    """The cells of the chosen tables and figures."""
    starts = tuple(f"{_PREFIXES[kind]}{number}_" for kind, number in chosen)
    return [cell for cell in cells if cell.where.startswith(starts)]


def number(value: Any) -> str:
    """A value in at most five significant digits."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if value and not 1e-3 <= abs(value) < 1e7:
        return f"{value:.4g}"
    return f"{value:,.5g}" if abs(value) < 1e5 else f"{value:,.0f}"


def overview(cells: Sequence[Cell]) -> RenderableType:
    """How many cells of each section round to the printed number."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    table.add_column("section")
    for header in ("cells", "as printed", "differ", "not computed"):
        table.add_column(header, justify="right")
    for where in dict.fromkeys(cell.where for cell in cells):
        states = [cell.within_rounding for cell in cells if cell.where == where]
        differ = states.count(False)
        table.add_row(
            where,
            str(len(states)),
            str(states.count(True)),
            Text(str(differ) if differ else "", style="bold yellow"),
            str(states.count(None) or ""),
        )
    return Padding(table, (0, 0, 1, 0))


def differences(cells: Sequence[Cell]) -> RenderableType:
    """Every cell that does not round to the printed number, and why; measurements apart."""
    rows = [cell for cell in cells if cell.within_rounding is False]
    measured = [cell for cell in rows if cell.is_measured]
    other = [cell for cell in rows if cell not in measured]
    parts: list[RenderableType] = []
    if other:
        parts += [
            Text(f"{len(other)} cells differ from the print", style="bold yellow"),
            _indent(_listing(other)),
        ]
    elif not measured:
        parts.append(Text("Every computed cell rounds to the printed one.", style="green"))
    if measured:
        title = f"{len(measured)} cells the paper measured; computed is what a model says"
        parts += [Text(title, style="bold yellow"), _indent(_listing(measured))]
    return Group(*parts)


def _indent(table: Table) -> RenderableType:
    return Padding(table, (0, 0, 1, 2))


def text_sheet(cells: Sequence[Cell]) -> RenderableType:
    """The numbers of the paper's text."""
    rows = [cell for cell in cells if cell.where == "text_values"]
    return Group(
        Text("Text: sections 4 to 7 and the introduction", style="bold cyan"),
        _indent(_listing(rows, short=True)),
    )


def _listing(cells: Sequence[Cell], short: bool = False) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("cell", overflow="fold", ratio=3)
    table.add_column("computed", justify="right", no_wrap=True)
    table.add_column("printed", justify="right", style="dim", no_wrap=True)
    table.add_column("note", overflow="fold", ratio=4)
    for cell in cells:
        path = " ".join(map(str, cell.path))
        table.add_row(
            Text(path if short else f"{cell.where.split('_')[0]} {path}"),
            Text(number(cell.computed), style="bold yellow" if cell.within_rounding is False else ""),
            number(cell.printed),
            cell.note or "",
        )
    return table

"""`step3 paper`: the Step-3 system paper, recomputed beside what it prints."""

from pathlib import Path
from typing import Annotated

import typer


def paper(
    table: Annotated[
        list[int] | None, typer.Option(min=1, max=9, help="Show table N (repeatable).", metavar="N")
    ] = None,
    figure: Annotated[
        list[int] | None, typer.Option(min=1, max=5, help="Show figure N (repeatable).", metavar="N")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Show all tables, figures and text values.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the cells as JSON.")] = False,
    plots: Annotated[
        Path | None, typer.Option(help="Draw the figures into this folder, as PNG and SVG.", metavar="DIR")
    ] = None,
) -> None:
    """Recompute the Step-3 system paper and show where it differs.

    Every number of tables 1-9, figures 1-5 and the text of arXiv 2507.19427
    is computed at full precision from model sizes and hardware, and set
    beside the printed one (dim). Yellow: it does not round to the printed
    number; the list at the end says why. Without options: a count for each
    section, and that list.
    """
    import json

    from rich.console import Console

    from step3.plan.paper.cells import paper_cells
    from step3.plan.paper.report import differences, overview, selected_cells, text_sheet
    from step3.plan.paper.sheets import SHEETS, render

    chosen = [("table", n) for n in table or []] + [("figure", n) for n in figure or []]
    if everything:
        chosen = [("table", n) for n in range(1, 10)] + [("figure", n) for n in range(1, 6)]
    cells = paper_cells()
    shown = cells if everything or not chosen else selected_cells(cells, chosen)
    if plots is not None:
        from step3.plan.paper.plots import draw_figures

        written = draw_figures(cells, plots, [n for kind, n in chosen if kind == "figure"] or None)
    if as_json:
        print(json.dumps([cell.as_json() for cell in shown], ensure_ascii=False, indent=1))
        return
    console = Console()
    for kind, number in chosen:
        for sheet in SHEETS[kind, number]:
            console.print(render(sheet, cells))
    if everything:
        console.print(text_sheet(cells))
    if not chosen:
        console.print(overview(cells))
    console.print(differences(shown))
    if plots is not None:
        console.print(f"{len(written)} files in {plots}", highlight=False)

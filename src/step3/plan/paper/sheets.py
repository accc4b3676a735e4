"""How each table and figure is laid out for reading: computed and printed side by side."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from step3.plan.paper.cells import Cell
from step3.plan.paper.printed import Path


@dataclass(frozen=True)
class Column:
    """One quantity of a sheet."""

    header: str
    path: Path
    """Below a row's path."""
    scale: float = 1.0
    """What a printed unit is in the cell's."""
    decimals: int | None = 3
    """Decimals printed; None is three significant digits."""


@dataclass(frozen=True)
class Sheet:
    """One table of output: a row for each entry of a section, a column for each quantity."""

    title: str
    where: str
    columns: Sequence[Column]
    depth: int = 1
    """Keys that name a row."""
    extra: int = 1
    """Digits that a computed number has more than a printed one."""


def _cards(names: Sequence[str], path: Path = (), decimals: int = 3) -> list[Column]:
    return [Column(name, (*path, name), decimals=decimals) for name in names]


_FOUR = ("H800", "H20", "A800", "910B")
_CONTEXTS = ("8K", "32K", "128K")
_USD = "USD for 1M tokens"
_WORK = (
    Column("KV + state", ("kv_state_bytes",), 1e6, None),
    Column("core", ("attn_core_flops",), 1e9, None),
    Column("linear", ("attn_linear_flops",), 1e9, None),
    Column("FFN", ("ffn_flops",), 1e9, None),
)

SHEETS: dict[tuple[str, int], tuple[Sheet, ...]] = {
    ("table", 1): (
        Sheet("Table 1: Step-3's model card", "table1_step3_model_card", [Column("value", (), decimals=0)]),
    ),
    ("table", 2): (Sheet("Table 2: work of one token at 8K, MB and GFLOP", "table2_8k", _WORK),),
    ("table", 3): (Sheet("Table 3: work of one token at 32K, MB and GFLOP", "table3_32k", _WORK),),
    ("table", 4): (
        Sheet(
            "Table 4: accelerators (bf16 and fp8 in TFLOP/s)",
            "table4_accelerators",
            [
                Column("USD/h", ("usd_per_hour",), decimals=2),
                Column("bf16", ("bf16_flops",), 1e12, 0),
                Column("fp8", ("fp8_flops",), 1e12, 0),
                Column("GB/s", ("mem_bw_bytes_per_s",), 1e9, 0),
                Column("FLOP/B", ("roofline_flop_per_byte",), decimals=0),
            ],
        ),
    ),
    ("table", 5): (
        Sheet(
            "Table 5: unit cost, USD for 1e18 FLOP and for 1e15 bytes",
            "table5_unit_cost",
            [
                Column("FLOP", ("usd_per_flop",), 1e-18, None),
                Column("bytes", ("usd_per_byte",), 1e-15, None),
            ],
        ),
    ),
    ("table", 6): (
        *(
            Sheet(f"Table 6: {words}, {_USD}", "table6_usd_per_1m_tokens", _cards(_FOUR, (part,)))
            for words, part in (
                ("attention at 8K", "attn_8k"),
                ("attention at 32K", "attn_32k"),
                ("FFN", "ffn"),
            )
        ),
        Sheet(
            "Table 6, caption: active parameters",
            "table6_caption_activated_params_b",
            [Column("in 1e9", (), decimals=1)],
        ),
    ),
    ("table", 7): (Sheet("Table 7: minimum MoE sparsity", "table7_min_moe_sparsity", [Column("S", ())]),),
    ("table", 8): (
        Sheet(
            "Table 8: peak throughput",
            "table8_peak_tgs",
            [
                Column("context", ("context_len_avg",), decimals=0),
                Column("cards", ("n_gpus",), decimals=0),
                Column("tokens/s/card", ("peak_tgs",), decimals=0),
            ],
        ),
    ),
    ("table", 9): (
        Sheet(
            "Table 9: µs of an attention layer (computed: the roofline bound)",
            "table9_us_per_attention_layer",
            _cards(_FOUR[:3], decimals=0),
            depth=2,
        ),
    ),
    ("figure", 1): (
        Sheet(
            "Figure 1: cost at 8K against active parameters",
            "fig1_pareto_8k",
            [Column(_USD, ("cost_usd_per_1m_8k",)), Column("active, 1e9", ("activated_b",), decimals=1)],
        ),
    ),
    ("figure", 2): tuple(
        Sheet(f"Figure 2: {_USD} at {label}", where, _cards((*_FOUR, "AFD")), extra=0)
        for label, where in (("8K", "fig2_8k_usd_per_1m"), ("32K", "fig2_32k_usd_per_1m"))
    ),
    ("figure", 3): (
        Sheet("Figure 3: KV and state moved for a token, GB", "fig3_kv_gb", _cards(_CONTEXTS, decimals=2)),
        Sheet(f"Figure 3: {_USD} on H800", "fig3_cost_h800_usd_per_1m", _cards(_CONTEXTS)),
    ),
    ("figure", 4): (
        Sheet(
            f"Figure 4: {_USD} on 910B",
            "fig4_910b_usd_per_1m",
            [
                Column("decode 8K", ("decode_8k",)),
                Column("decode 32K", ("decode_32k",)),
                Column("train 8K", ("train_8k",)),
            ],
        ),
    ),
    ("figure", 5): (
        Sheet(
            "Figure 5: attention on the roofline",
            "fig5_points_gb_gflop",
            [Column("KV, GB", (0,), decimals=None), Column("core, GFLOP", (1,), decimals=None)],
            depth=2,
        ),
        Sheet(
            "Figure 5: slopes of the cards' lines",
            "fig5_plotted_hw_line_slopes_flop_per_byte",
            [Column("FLOP/byte", (), decimals=0)],
        ),
    ),
}
"""What is shown for each table and figure."""


def _rows(cells: Iterable[Cell], sheet: Sheet) -> list[tuple[str, Path]]:
    """(label, path) of each row."""
    mine = [cell for cell in cells if cell.where == sheet.where]
    paths = dict.fromkeys(cell.path[: sheet.depth] for cell in mine)
    if sheet.where == "table8_peak_tgs":
        names = {cell.path: str(cell.printed) for cell in mine}
        return [(f"{names[(*p, 'model')]} {names.get((*p, 'deployment'), '')}", p) for p in paths]
    return [(" ".join(map(str, path)), path) for path in paths if not str(path[-1]).startswith("_")]


def show(value: Any, column: Column, extra: int = 0) -> str:
    """A number as the paper would print it, with `extra` digits more."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    scaled = value / column.scale
    if column.decimals is not None:
        return f"{scaled:,.{column.decimals + extra}f}"
    before = math.floor(math.log10(abs(scaled))) + 1 if scaled else 1
    decimals = 3 + extra - before
    return f"{round(scaled, decimals):,.{max(decimals, 0)}f}"


def _pair(cell: Cell, column: Column, extra: int) -> tuple[str, str]:
    """Computed, with `extra` digits unless the two are the same, and printed."""
    same = cell.computed == cell.printed or isinstance(cell.printed, str)
    return show(cell.computed, column, 0 if same else extra), show(cell.printed, column)


def render(sheet: Sheet, cells: Sequence[Cell]) -> RenderableType:
    """A sheet for the terminal; what does not round to the printed number stands out."""
    found = {cell.path: cell for cell in cells if cell.where == sheet.where}
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    for column in sheet.columns:
        table.add_column(Text(column.header), justify="right", overflow="fold", min_width=len(column.header))
        table.add_column("", justify="right", style="dim", overflow="fold")
    for label, path in _rows(cells, sheet):
        line: list[Text] = [Text(label + " ")]
        for column in sheet.columns:
            cell = found.get((*path, *column.path))
            computed, printed = ("–", "–") if cell is None else _pair(cell, column, sheet.extra)
            differs = cell is not None and cell.within_rounding is False
            line += [Text(computed, style="bold yellow" if differs else ""), Text(printed + " ")]
        table.add_row(*line)
    title = Text.assemble((sheet.title, "bold cyan"), "  computed", ("  printed", "dim"))
    return Group(title, Padding(table, (0, 0, 1, 2)))

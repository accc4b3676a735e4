import json
from typing import Any

import pytest

from step3.plan.paper.cells import Cell, paper_cells
from step3.plan.paper.printed import Rounding, leaves, printed_tables


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return paper_cells()


def of(cells: list[Cell], where: str) -> list[Cell]:
    return [cell for cell in cells if cell.where == where]


WITHIN = (
    "table1_step3_model_card",
    "table2_8k",
    "table3_32k",
    "table4_accelerators",
    "table6_usd_per_1m_tokens",
    "table6_caption_activated_params_b",
    "table7_min_moe_sparsity",
    "fig1_pareto_8k",
    "fig2_8k_usd_per_1m",
    "fig2_32k_usd_per_1m",
    "fig3_kv_gb",
    "fig5_points_gb_gflop",
)


@pytest.mark.parametrize("where", WITHIN)
def test_every_cell_rounds_to_the_printed_one(cells: list[Cell], where: str) -> None:
    assert of(cells, where)
    assert [cell for cell in of(cells, where) if not cell.within_rounding] == []


def test_table_6_has_108_of_108(cells: list[Cell]) -> None:
    assert sum(cell.within_rounding is True for cell in of(cells, "table6_usd_per_1m_tokens")) == 108


KNOWN = {
    ("table5_unit_cost", "H800", "usd_per_flop"),
    ("fig3_cost_h800_usd_per_1m", "Llama 4 M", "128K"),
    ("fig4_910b_usd_per_1m", "Pangu Pro MoE", "decode_8k"),
    ("fig4_910b_usd_per_1m", "Step-3", "decode_8k"),
    ("fig5_plotted_hw_line_slopes_flop_per_byte", "H800"),
    ("fig5_plotted_hw_line_slopes_flop_per_byte", "_endpoints", "H800", 1),
}


def test_tables_and_figures_differ_in_the_known_misprints_alone(cells: list[Cell]) -> None:
    differing = {
        (cell.where, *cell.path)
        for cell in cells
        if cell.within_rounding is False and not cell.is_measured and cell.where != "text_values"
    }
    assert differing == KNOWN


def test_what_differs_or_is_not_computed_says_why(cells: list[Cell]) -> None:
    assert [cell for cell in cells if cell.within_rounding is not True and not cell.note] == []


def test_fitted_constants_are_marked(cells: list[Cell]) -> None:
    fitted = [cell for cell in cells if cell.path == ("MM M1", "attn_core_flops")]
    assert len(fitted) == 2
    assert all("fitted constant" in str(cell.note) for cell in fitted)


def test_every_printed_number_has_its_cell(cells: list[Cell]) -> None:
    printed = {
        (where, *path): value
        for where, section in printed_tables().items()
        if where != "_meta"
        for path, value in leaves(section)
        if path[-1] != "_setup"
    }
    assert {(cell.where, *cell.path): cell.printed for cell in cells} == printed


def test_no_printed_number_is_looked_up(monkeypatch: pytest.MonkeyPatch, cells: list[Cell]) -> None:
    """Tables 1 to 7 and all figures come out the same when the printed tables are wrong."""
    import copy

    from step3.plan.paper import cells as module

    def spoilt(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoilt(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [spoilt(entry) for entry in value]
        return value * 3 if isinstance(value, float) else value

    tables = copy.deepcopy(printed_tables())
    monkeypatch.setattr(
        module,
        "printed_tables",
        lambda: {
            where: spoilt(section) for where, section in tables.items() if where.startswith(("table", "fig"))
        },
    )
    again = {(cell.where, *cell.path): cell.computed for cell in paper_cells()}
    for cell in cells:
        if cell.where.startswith(("table", "fig")):
            assert again[(cell.where, *cell.path)] == cell.computed


def test_the_json_form_names_cells_as_the_transcription_does(cells: list[Cell]) -> None:
    cell = next(c for c in of(cells, "table6_usd_per_1m_tokens") if c.path == ("DSv3", "attn_8k", "H800"))
    assert json.loads(json.dumps(cell.as_json())) == {
        "where": "table6_usd_per_1m_tokens",
        "path": ["DSv3", "attn_8k", "H800"],
        "computed": cell.computed,
        "printed": 0.054,
        "within_rounding": True,
        "note": None,
    }


@pytest.mark.parametrize(
    ("rounding", "computed", "printed", "holds"),
    [
        (Rounding(decimals=3), 0.0545, 0.054, True),
        (Rounding(decimals=3), 0.05451, 0.054, False),
        (Rounding(digits=3), 4.2949e9, 4.29e9, True),
        (Rounding(digits=3), 4.2951e9, 4.29e9, False),
        (Rounding(digits=3), 2.806e-19, 2.80e-19, False),
        (Rounding(), 7168, 7168, True),
        (Rounding(), 7169, 7168, False),
    ],
)
def test_rounding(rounding: Rounding, computed: float, printed: float, holds: bool) -> None:
    assert rounding.holds(computed, printed) is holds

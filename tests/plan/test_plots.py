import builtins
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from step3.plan.canvas import drawing, save
from step3.plan.errors import PlanError
from step3.plan.evaluate import Demand
from step3.plan.hardware import HardwareCatalogue
from step3.plan.models import find_model
from step3.plan.plots import TARGETS_MS, context_curves, draw_plan, speed_curves
from step3.plan.search import Space, search
from step3.plan.workload import Contexts

STEP3 = find_model("Step-3")
CARDS = HardwareCatalogue().choose("H800,H20")
DEMAND = Demand(STEP3, STEP3.precision, Contexts.fixed(8192), 0.05)
SPACE = Space(CARDS, CARDS, most_attention=2, most_ffn=1, lanes=[3])


def silent(what: str, done: int, of: int) -> None:
    assert done <= of


def test_cost_rises_with_context_on_every_curve() -> None:
    curves = context_curves(DEMAND, SPACE, silent)
    assert [curve.name for curve in curves] == ["AFD, best of all", "H20 alone", "H800 alone"]
    for curve in curves:
        for (_, near), (_, far) in pairwise(curve.points):
            assert far >= near * (1 - 1e-9)
        assert max(context for context, _ in curve.points) <= 65536


def test_cost_rises_with_speed_on_every_curve() -> None:
    for curve in speed_curves(DEMAND, SPACE, silent):
        assert len(curve.points) <= len(TARGETS_MS)
        for (_, slower), (_, faster) in pairwise(curve.points):
            assert faster >= slower * (1 - 1e-9)


def test_every_plot_is_written_as_png_and_svg(tmp_path: Path) -> None:
    best = search(DEMAND, SPACE).best()
    written = draw_plan(DEMAND, SPACE, best, tmp_path / "plots", silent)
    assert {path.name for path in written} == {
        f"{name}.{kind}" for name in ("cost-against-context", "pareto", "roofline") for kind in ("png", "svg")
    }
    for path in written:
        assert path.read_bytes()[:4] in (b"\x89PNG", b"<?xm")


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PlanError, match=r"pip install 'step3\[plots\]'"), drawing(1, 1):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with drawing(2, 2) as (figure, _), pytest.raises(PlanError, match="cannot be written to"):
        save(figure, tmp_path / "file", "x")

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from step3.cli.main import app
from step3.errors import Step3Error
from step3.plan import calibrate
from step3.plan.errors import HardwareError, ModelError, PlanError, WorkloadError

QUICK = ["--max-attention", "2", "--max-ffn", "1", "--cards", "H800,H20"]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "100"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_plan_prints_deployments_reasons_and_the_command() -> None:
    text = run("plan", "Step-3", *QUICK)
    for word in (
        "Cheapest deployment",
        "bound by",
        "slack",
        "AFD",
        "What would change the answer",
        "step3 serve Step-3",
    ):
        assert word in text


def test_plan_as_json_is_json_alone() -> None:
    plan = json.loads(run("plan", "dsv3", *QUICK, "--json", "--top", "2", "--drafts", "1"))
    assert len(plan["deployments"]) == 2
    assert plan["model"]["name"] == "DSv3"
    assert plan["demand"]["drafts"] == 1


def test_plan_takes_prices_types_and_efficiencies_into_account() -> None:
    def cost(*options: str) -> float:
        return json.loads(run("plan", *QUICK, "--json", *options))["deployments"][0]["usd_per_million"]

    base = cost()
    assert cost("--price", "H800=9", "--price", "H20=9") > base
    assert cost("--kv", "bf16") > base
    assert cost("--efficiency", "table9") > base
    assert cost("--text-only") <= base * (1 + 1e-9)
    assert cost("--context", "1K") < base < cost("--context", "32K")


def test_plan_tries_only_the_asked_for_topologies() -> None:
    narrow = ["--cards", "H800", "--max-attention", "1", "--max-ffn", "2", "--attention-instance", "4"]
    plan = json.loads(run("plan", "--json", *narrow, "--ffn-parallel", "tp2", "--pipeline", "3"))
    split = [entry for entry in plan["deployments"] if entry["ffn"]["instances"]]
    tried = {(entry["topology"], entry["micro_batches"], entry["attention"]["cards_each"]) for entry in split}
    assert tried <= {("1A2F:tp2", 3, 4)}


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (["nobody/knows"], ModelError, "neither in the catalogue"),
        (["--cards", "TPU"], HardwareError, "'TPU' is unknown"),
        (["--price", "H800=-2"], HardwareError, "is not a price"),
        (["--hardware", "/nowhere.yaml"], HardwareError, "cannot be read"),
        (["--context", "huge"], WorkloadError, "no context length and no file"),
        (["--context", "128K"], PlanError, "takes at most 65,536 tokens"),
        (["--tpot", "0"], PlanError, "above 0"),
        (["--tpot", "0.01", *QUICK], PlanError, "no deployment meets this demand"),
        (["--pipeline", "x"], PlanError, "no list of micro-batches"),
        (["--ffn-parallel", "pp"], Step3Error, "how to cut"),
        (["--kv", "fp6"], PlanError, "kv cannot be 'fp6'"),
        (["--weights", "fp6"], PlanError, "attention_weights cannot be 'fp6'"),
        (["--memory", "2"], PlanError, "share of memory"),
        (["--efficiency", "high"], PlanError, "'high'"),
    ],
)
def test_plan_names_what_is_wrong(options: list[str], error: type[Step3Error], says: str) -> None:
    with pytest.raises(error, match=says):
        run("plan", *options)


def test_paper_lists_what_differs() -> None:
    text = run("paper")
    assert "17 cells differ from the print" in text
    assert "table6_usd_per_1m_tokens" in text


def test_paper_shows_the_asked_for_table_and_figure(tmp_path: Path) -> None:
    text = run("paper", "--table", "6", "--figure", "2", "--plots", str(tmp_path))
    assert "0.0541  0.054" in text
    assert "Table 5" not in text
    assert {path.name for path in tmp_path.iterdir()} == {"figure2.png", "figure2.svg"}


def test_paper_as_json_is_a_list_of_cells() -> None:
    cells = json.loads(run("paper", "--table", "6", "--json"))
    assert {cell["where"] for cell in cells} == {
        "table6_usd_per_1m_tokens",
        "table6_caption_activated_params_b",
    }
    assert set(cells[0]) == {"where", "path", "computed", "printed", "within_rounding", "note"}
    everything = json.loads(run("paper", "--all", "--json"))
    assert len(everything) > 400


@pytest.mark.parametrize("columns", [80, 120])
def test_the_papers_tables_fit_the_terminal(columns: int) -> None:
    result = CliRunner().invoke(app, ["paper", "--all"], env={"COLUMNS": str(columns)})
    assert max(len(line) for line in result.stdout.splitlines()) <= columns


def test_calibrate_writes_an_entry_that_plan_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def take_a_millisecond(self: calibrate.Calibration, kernel: Callable[[], Any]) -> float:
        kernel()
        return 1e-3

    small = calibrate.Sizes(square=128, stream=8 << 20, hidden=256, heads=4, many=64)
    monkeypatch.setattr(calibrate, "CPU_SIZES", small)
    # What a busy machine seems to be able to do may be too little for any plan.
    monkeypatch.setattr(calibrate.Calibration, "_fastest", take_a_millisecond)
    path = tmp_path / "mine.yaml"
    run(
        "calibrate",
        "--device",
        "cpu",
        "--name",
        "mine",
        "--out",
        str(path),
        "--price",
        "0.1",
    )
    golden = Path(__file__).parents[1] / "data" / "golden" / "text"
    text = run("plan", str(golden), "--hardware", str(path), "--cards", "mine", "--context", "512")
    assert "1 mine" in text

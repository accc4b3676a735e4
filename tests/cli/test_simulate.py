import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from step3.cli.main import app
from step3.errors import Step3Error

QUICK = ["--batch", "256", "--context", "4K", "--duration", "0.5", "--warmup", "0.2"]


def simulate(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["simulate", *arguments], env={"COLUMNS": "80"})
    if result.exception is not None:
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def simulate_json(*arguments: str) -> dict[str, Any]:
    return json.loads(simulate(*arguments, "--json"))


def test_a_model_on_cards_is_simulated_and_reported() -> None:
    report = simulate("--model", "step3", "--hardware", "h800", "--topology", "2A2F", "--lanes", "3", *QUICK)
    assert "2A2F: 8 cards an attention instance, 8 an FFN instance; 32 cards in all" in report
    assert "Limited by" in report


def test_json_is_the_whole_result() -> None:
    values = simulate_json(*QUICK, "--seed", "3")
    assert values["cards"] == 32
    assert values["seed"] == 3
    assert values["running"] == pytest.approx(3 * 256, rel=0.02)
    assert 0.9 < values["token"]["mean"] / values["closed_form"]["tpot"] < 1.3


def test_what_goes_wrong_is_simulated_twice_and_compared() -> None:
    report = simulate(*QUICK, "--fail", "ffn:0@0.4", "--detect", "0.05", "--restart", "0.1")
    assert "What the failures cost" in report
    values = simulate_json(*QUICK, "--fail", "ffn:0@0.4", "--detect", "0.05", "--restart", "0.1")
    assert values["failures"]["longest_gap"] > 0.1 > values["failures"]["longest_gap_before"]


def test_a_run_of_so_many_requests_ends_with_the_last(tmp_path: Path) -> None:
    values = simulate_json(
        "--batch", "96", "--arrivals", "poisson:200", "--prompt", "500", "--output", "20", "--requests", "50"
    )
    assert (values["arrived"], values["finished"], values["tokens"]) == (50, 50, 1000)
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 500, "output_length": 4}\n')
    values = simulate_json("--batch", "96", "--arrivals", str(trace), "--prefill")
    assert (values["finished"], values["tokens"]) == (1, 4)


def test_trace_and_plots_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    trace, plots = tmp_path / "trace.json", tmp_path / "plots"
    report = simulate(*QUICK, "--trace", str(trace), "--plots", str(plots))
    assert json.loads(trace.read_text())["traceEvents"]
    assert {path.name for path in plots.iterdir()} == {
        "gantt.png",
        "gantt.svg",
        "timeline.png",
        "timeline.svg",
    }
    assert report.count("wrote") == 5


def write_times(path: Path, host: str = "") -> Path:
    """Four layers, every stage of which takes a millisecond."""
    line = "{sequences: [1], us: [1000]}"
    path.write_text(
        f"kinds:\n  - layers: 4\n    attention: {{sequences: [1], contexts: [1], us: [[1000]]}}\n"
        f"    out: {line}\n    ffn: {line}\n    back: {line}\nhead: {line}\n{host}"
    )
    return path


def test_instances_share_the_cores_of_the_host_that_a_file_names(tmp_path: Path) -> None:
    times = write_times(tmp_path / "times.yaml", "host: {cores: 1, wake_us: 100}\n")
    options = ["--times", str(times), "--topology", "1A1F", "--lanes", "1", *QUICK, "--output", "50"]
    assert simulate_json(*options)["token"]["mean"] == pytest.approx(17e-3 + 8 * 100e-6)
    with pytest.raises(Step3Error, match="cannot --fail"):
        simulate(*options, "--fail", "ffn@1")


def test_measured_times_take_the_place_of_rooflines(tmp_path: Path) -> None:
    times = write_times(tmp_path / "times.yaml")
    values = simulate_json(
        "--times",
        str(times),
        "--topology",
        "1A1F",
        "--lanes",
        "1",
        *QUICK,
        "--merge",
        "lane",
        "--output",
        "50",
    )
    assert values["token"]["mean"] == pytest.approx(17e-3)
    assert values["cards"] == 2
    assert values["usd_per_million"] is None


def test_settings_reach_the_simulation() -> None:
    plain = simulate_json(*QUICK)["token"]["mean"]
    assert simulate_json(*QUICK, "--straggler", "ffn=3")["token"]["mean"] > 1.5 * plain
    assert simulate_json(*QUICK, "--latency", "200")["token"]["mean"] > plain + 61 * 200e-6
    assert simulate_json(*QUICK, "--attention", "H20", "--ffn", "H20")["token"]["mean"] != plain
    assert simulate_json(*QUICK, "--jitter", "0.3")["token"]["p99"] > plain
    assert simulate_json(*QUICK, "--pods", "10")["cards"] == 320
    assert simulate_json(*QUICK, "--cache-tokens", "20000")["running"] < 16 * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "2F"], "is not a topology"),
        (["--hardware", "H9000"], "'H9000' is unknown"),
        (["--model", "gpt-0"], "'gpt-0' is neither in the catalogue"),
        (["--context", "4K", "--prompt", "2K"], "--context and --prompt contradict"),
        (["--arrivals", "often"], "--arrivals 'often' is no file"),
        (["--fail", "ffn:7@1", *QUICK], "has no ffn instance 7"),
        (["--straggler", "ffn"], "--straggler 'ffn'"),
        (["--merge", "most", *QUICK], "--merge is one of layer, lane, all, none, not 'most'"),
        (["--efficiency", "mine"], "--efficiency is 'catalogue' or 'table9'"),
        (["--times", "missing.yaml"], "with --times the batch must be given: --batch"),
        (["--times", "missing.yaml", "--batch", "4"], "missing.yaml cannot be read"),
        (["--lanes", "100", *QUICK], "lanes must be from 1 to 64"),
    ],
)
def test_a_wrong_option_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(Step3Error, match=message):
        simulate(*arguments)

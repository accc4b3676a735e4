import json
from pathlib import Path
from typing import Any

import pytest
from scripted_server import serving, words
from typer.testing import CliRunner

from step3.cli.main import app
from step3.errors import Step3Error


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "120"})


def test_concurrencies_and_rates_make_a_table_json_and_a_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    data, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    with serving(lambda _: words("a b c")) as server:
        flags = [
            "--concurrency",
            "1,2",
            "--rate",
            "500",
            "--requests",
            "6",
            "--json",
            str(data),
            "--plot",
            str(plot),
        ]
        result = run("--url", server.url, *flags)
    assert result.exit_code == 0, result.output
    for load in ("1 at once", "2 at once", "500 a second"):
        assert load in result.output
    document = json.loads(data.read_text())
    assert [one["completed"] for one in document["runs"]] == [6, 6, 6]
    assert document["model"] == "scripted"
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_failures_are_shown_and_make_the_exit_code_one() -> None:
    asked: list[int] = []

    def sometimes(_: dict[str, Any]) -> Any:
        asked.append(1)
        return (429, "no room") if len(asked) % 2 == 0 and len(asked) > 2 else words("a b", prompt=len(asked))

    with serving(sometimes) as server:
        result = run("--url", server.url, "--concurrency", "1", "--requests", "8", "--warmup", "0")
    assert result.exit_code == 1
    assert "4 × 429: no room" in result.output


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--concurrency", "one"], "--concurrency"),
        (["--concurrency", "0"], "concurrency"),
        (["--rate", "-1"], "rate"),
        (["--endpoint", "audio"], "--endpoint"),
        (["--plot", "x.gif"], "PNG"),
        (["--trace", "missing.jsonl"], "missing.jsonl"),
        (["--trace", __file__, "--rate", "1"], "leave --concurrency and --rate out"),
        (["--prompt", "long"], "'long'"),
        (["--url", "nowhere"], "--url"),
    ],
)
def test_bad_options_are_named(flags: list[str], told: str) -> None:
    result = run(*flags)
    assert isinstance(result.exception, Step3Error)
    assert told in str(result.exception)

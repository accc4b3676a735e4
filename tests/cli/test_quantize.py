from pathlib import Path

import pytest
from typer.testing import CliRunner

from step3.checkpoint import Checkpoint, CheckpointError
from step3.checkpoint.quantisation import Quantisation
from step3.cli import app

GOLDEN = Path(__file__).parent.parent / "data" / "golden"


def run(*arguments: object):
    return CliRunner().invoke(app, ["quantize", *map(str, arguments)], env={"COLUMNS": "200"})


def test_makes_a_checkpoint_and_says_what_it_made(tmp_path):
    result = run(GOLDEN / "text", tmp_path / "out")
    assert result.exit_code == 0
    assert f"{tmp_path / 'out'}: 1.07 MB of block-fp8 from 1.87 MB, 1 file(s)." in result.output
    Checkpoint.open(tmp_path / "out").check()


def test_replaces_only_when_told_to(tmp_path):
    run(GOLDEN / "vl", tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"exists already; .* replace it with --overwrite"):
        raise run(GOLDEN / "text", tmp_path / "out").exception
    assert run(GOLDEN / "text", tmp_path / "out", "--overwrite").exit_code == 0
    assert Checkpoint.open(tmp_path / "out").config.vision is None


def test_file_size_is_an_option(tmp_path):
    result = run(GOLDEN / "text", tmp_path / "out", "--shard-gb", "0.001")
    assert "2 file(s)" in result.output


def test_stopped_by_the_keyboard_it_says_how_to_go_on(tmp_path, monkeypatch):
    def stop(self, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(Quantisation, "run", stop)
    result = run(GOLDEN / "text", tmp_path / "out")
    assert result.exit_code == 130
    assert "Run the same command again to go on" in result.output

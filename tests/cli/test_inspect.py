import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from step3.checkpoint import CheckpointError
from step3.cli import app

DATA = Path(__file__).parent.parent / "data"


def run(*arguments: object):
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)], env={"COLUMNS": "120"})


@pytest.mark.parametrize("path", ["published", "published/config.json"])
def test_a_config_alone_says_the_published_numbers(path):
    printed = run(DATA / path).output
    assert "316 B parameters, 38 B active per token, 321 B with the vision tower" in printed
    assert "62,464 bytes in bf16, 31,232 bytes in fp8" in printed
    assert "No weights here: computed from config.json." in printed


def test_each_part_and_each_machine_has_a_row():
    lines = (line.split("│")[1:-1] for line in run(DATA / "published").output.splitlines())
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines if cells}
    assert rows["experts"] == ["296 B", "92.2%", "592 GB", "296 GB"]
    assert rows["all"] == ["321 B", "100%", "642 GB", "328 GB"]
    assert rows["8 x H100 80 GB"] == ["110 GB", "too small", "61.4 GB", "2.71 M"]
    assert any(name.startswith("this machine") for name in rows)


@pytest.mark.parametrize("name", ["text", "text-fp8", "vl"])
def test_a_whole_checkpoint_is_said_to_be_whole(name):
    result = run(DATA / "golden" / name)
    assert result.exit_code == 0
    assert "Names, shapes and dtypes are what config.json implies." in result.output
    assert ("with the vision tower" in result.output) == (name == "vl")


def test_differences_are_listed_and_exit_with_one(tmp_path):
    shutil.copytree(DATA / "golden" / "text", tmp_path / "ckpt")
    config = json.loads((tmp_path / "ckpt" / "config.json").read_text()) | {"vocab_size": 500}
    (tmp_path / "ckpt" / "config.json").write_text(json.dumps(config))
    result = run(tmp_path / "ckpt")
    assert result.exit_code == 1
    assert "2 difference(s) from what config.json implies" in result.output
    assert "lm_head.weight: wrong shape" in " ".join(result.output.split())


def test_json_has_the_same_numbers():
    values = json.loads(run(DATA / "golden" / "text-fp8", "--json").output)
    assert values["bytes"]["block-fp8"] == values["stored"]["bytes"] == 1072216
    assert values["stored"]["tensors"] == {"F32": 38, "BF16": 17, "F8_E4M3": 38}
    assert values["problems"] == []
    assert sum(part["parameters"] for part in values["parts"].values()) == values["parameters"]
    assert {fit["weights"] for fit in values["fits"]} == {"bf16", "block-fp8"}


def test_what_is_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="expected a checkpoint's folder"):
        raise run(tmp_path).exception


def test_inspecting_needs_no_torch():
    code = (
        "import sys; from step3.cli import app\n"
        f"app(['inspect', {str(DATA / 'golden' / 'vl')!r}], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0

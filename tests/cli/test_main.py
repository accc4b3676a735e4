import importlib
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from step3.errors import Step3Error

cli = importlib.import_module("step3.cli.main")


def test_help_names_every_command_and_loads_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from step3.cli.main import app;"
        "result = CliRunner().invoke(app, ['--help']); print(result.output);"
        "assert result.exit_code == 0; assert 'torch' not in sys.modules"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for command in cli.app.registered_commands:
        assert str(command.name) in output


@pytest.mark.parametrize("name", [command.name for command in cli.app.registered_commands])
def test_each_command_explains_itself(name):
    result = CliRunner().invoke(cli.app, [name, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 8


def test_an_expected_error_is_one_line_and_exit_code_one(monkeypatch, capsys):
    def fail() -> None:
        raise Step3Error("layer [7] is missing")

    app = typer.Typer()
    app.command("fail")(fail)
    monkeypatch.setattr(cli, "app", lambda: app([], standalone_mode=False))
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1
    assert capsys.readouterr().err == "error: layer [7] is missing\n"

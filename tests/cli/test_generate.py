import shutil
from pathlib import Path

import pytest
from PIL import Image
from transformers import logging
from typer.testing import CliRunner

from step3.cli.main import app
from step3.errors import Step3Error

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def run(*arguments: str):
    return CliRunner().invoke(app, ["generate", *arguments], env={"COLUMNS": "500"})


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "grey.png"
    Image.new("RGB", (60, 40), (90, 90, 90)).save(path)
    return path


def test_it_answers_about_a_picture(picture):
    result = run(
        str(GOLDEN / "vl"), "--image", str(picture), "--prompt", "What is this?", "--max-new-tokens", "4"
    )
    assert result.exit_code == 0, result.exception
    assert result.output.strip()


def test_transformers_log_is_left_as_it_was():
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    run(str(GOLDEN / "text"), "-p", "Hello", "--max-new-tokens", "1")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_sampling_is_repeatable_by_its_seed(picture):
    arguments = (str(GOLDEN / "text"), "-p", "Hello", "--max-new-tokens", "12", "--temperature", "1")
    first, again, other = (run(*arguments, "--seed", seed).output for seed in ("1", "1", "2"))
    assert first == again != other


def test_a_missing_picture_is_named():
    result = run(str(GOLDEN / "vl"), "--image", "no-such.png", "--prompt", "What is this?")
    assert isinstance(result.exception, Step3Error)
    assert "no-such.png" in str(result.exception)


def test_another_model_is_refused(tmp_path):
    shutil.copytree(GOLDEN / "text", tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text('{"model_type": "llama"}')
    result = run(str(tmp_path / "other"), "--prompt", "Hello")
    assert isinstance(result.exception, Step3Error)
    assert "not a Step3 checkpoint" in str(result.exception)
    assert "llama" in str(result.exception)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    result = run(str(tmp_path / "nowhere"), "--prompt", "Hello")
    assert isinstance(result.exception, Step3Error)
    assert "nowhere" in str(result.exception)


def test_a_picture_for_a_text_only_checkpoint_is_refused(picture):
    result = run(str(GOLDEN / "text"), "--image", str(picture), "--prompt", "What is this?")
    assert isinstance(result.exception, Step3Error)
    assert "no vision tower" in str(result.exception)

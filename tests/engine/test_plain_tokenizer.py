"""tokenizer.json by itself gives what Transformers gives, or is left to Transformers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from step3.engine.detokenizer import TokenTable
from step3.engine.plain_tokenizer import PlainTokenizer
from step3.engine.tokens import Tokens

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "text"
TEXTS = [
    "",
    "The quick brown fox",
    "  two  spaces\n\nand lines\t",
    "größer, 漢字, 🙂",
    "<｜begin▁of▁sentence｜>already begun<|EOT|> and ended",
    "<think>\nhm</think>",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(GOLDEN / name, tmp_path)
    return tmp_path


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_gives_what_transformers_gives() -> None:
    plain, whole = PlainTokenizer.read(GOLDEN), PreTrainedTokenizerFast.from_pretrained(GOLDEN)
    assert plain is not None
    for text in TEXTS:
        for special in (True, False):
            assert plain.encode(text, add_special_tokens=special) == whole.encode(
                text, add_special_tokens=special
            )
    assert plain.get_vocab() == whole.get_vocab()
    assert (plain.bos_token, plain.eos_token_id) == (whole.bos_token, whole.eos_token_id)
    assert TokenTable.of(plain).tokens == TokenTable.of(whole).tokens
    assert TokenTable.of(plain).special == TokenTable.of(whole).special


@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer_class": "LlamaTokenizerFast"},
        {"add_bos_token": True},
        {"added_tokens_decoder": {"5": {"content": "<new>"}}},
        {"bos_token": "<not a token>"},
        {"bos_token": {"content": "<｜begin▁of▁sentence｜>", "lstrip": True}},
    ],
)
def test_leaves_to_transformers_what_it_may_change(folder: Path, config: dict[str, Any]) -> None:
    assert PlainTokenizer.read(folder) is not None
    change(folder / "tokenizer_config.json", **config)
    assert PlainTokenizer.read(folder) is None


@pytest.mark.parametrize("name", ["special_tokens_map.json", "added_tokens.json"])
def test_leaves_further_files_to_transformers(folder: Path, name: str) -> None:
    (folder / name).write_text("{}")
    assert PlainTokenizer.read(folder) is None


def test_leaves_what_it_cannot_read_to_transformers(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    assert PlainTokenizer.read(folder) is None
    (folder / "tokenizer.json").unlink()
    assert PlainTokenizer.read(folder) is None


def test_a_tokenizer_that_truncates_is_left_to_transformers(folder: Path) -> None:
    change(
        folder / "tokenizer.json",
        truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
    )
    assert PlainTokenizer.read(folder) is None


def test_transformers_tokenizer_is_there_when_it_is_asked_for() -> None:
    tokens = Tokens.load(GOLDEN, sees=False)
    assert tokens.tokenizer.encode("The fox") == tokens.encode("The fox")
    assert tokens.tokenizer is tokens.tokenizer
    assert type(tokens.tokenizer) is type(AutoTokenizer.from_pretrained(GOLDEN))


def test_text_needs_no_transformers() -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from step3.engine.tokens import Tokens\n"
        f"Tokens.load(Path({str(GOLDEN)!r}), sees=False).encode('The fox')\n"
        "assert 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)

"""Tokens into text, whole characters only."""

import random

import pytest
from engine_requests import GOLDEN
from transformers import PreTrainedTokenizerFast

from step3.engine.detokenizer import Detokenizer, TokenTable
from step3.errors import Step3Error


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(GOLDEN / "text")


@pytest.fixture(scope="module")
def table(tokenizer: PreTrainedTokenizerFast) -> TokenTable:
    return TokenTable.of(tokenizer)


def text_of(table: TokenTable, tokens: list[int], skip_special_tokens: bool = True) -> str:
    detokenizer = Detokenizer(table, skip_special_tokens)
    return "".join(detokenizer.push([token]) for token in tokens)


@pytest.mark.parametrize(
    "text", ["plain words", "héllo wörld", "数学 ☃ 👩‍👩‍👧", "tabs\tand\n\nlines  ", "a b"]
)
def test_gives_back_what_was_encoded(
    tokenizer: PreTrainedTokenizerFast, table: TokenTable, text: str
) -> None:
    assert text_of(table, tokenizer.encode(text)) == text


def test_shows_a_character_only_when_it_is_whole(
    tokenizer: PreTrainedTokenizerFast, table: TokenTable
) -> None:
    tokens = tokenizer.encode("👩")
    assert len(tokens) > 1
    detokenizer = Detokenizer(table, skip_special_tokens=True)
    assert [detokenizer.push([token]) for token in tokens] == [*[""] * (len(tokens) - 1), "👩"]


@pytest.mark.parametrize("skip_special_tokens", [True, False])
def test_equals_the_tokenizer_on_any_tokens(
    tokenizer: PreTrainedTokenizerFast, table: TokenTable, skip_special_tokens: bool
) -> None:
    draw = random.Random(0)
    for _ in range(300):
        tokens = [draw.randrange(512) for _ in range(12)]
        expected = tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)
        got = text_of(table, tokens, skip_special_tokens)
        # An unfinished character at the end waits; the tokenizer shows it as broken.
        assert expected.startswith(got)
        assert set(expected[len(got) :]) <= {"\ufffd"}


def test_special_tokens_are_skipped_or_shown(table: TokenTable) -> None:
    assert text_of(table, [4]) == ""
    assert text_of(table, [4], skip_special_tokens=False) == "<|EOT|>"


def test_an_id_that_the_tokenizer_does_not_know_is_no_text(table: TokenTable) -> None:
    assert text_of(table, [100_000]) == ""


def test_half_a_character_alone_is_shown_as_broken(
    tokenizer: PreTrainedTokenizerFast, table: TokenTable
) -> None:
    assert table.text(tokenizer.encode("👩")[0]).endswith("\ufffd")


def test_refuses_a_tokenizer_whose_tokens_are_not_bytes() -> None:
    from tokenizers import Tokenizer, decoders, models

    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(Step3Error, match="ByteLevel"):
        TokenTable.of(PreTrainedTokenizerFast(tokenizer_object=backend))

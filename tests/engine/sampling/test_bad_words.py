"""Bad words as token sequences, matched by what stands before."""

import pytest

from step3.engine.sampling.bad_words import BadWords, bad_word_ids
from step3.engine.sampling.errors import ParamsError

VOCABULARY = {"a": 1, "b": 2, " a": 3, " b": 4, " ": 5, "ab": 6}


def encode(text):
    """Longest match first."""
    ids = []
    while text:
        piece = max((piece for piece in VOCABULARY if text.startswith(piece)), key=len, default=None)
        if piece is None:
            text = text[1:]
            continue
        ids.append(VOCABULARY[piece])
        text = text[len(piece) :]
    return ids


def test_a_word_is_written_at_the_start_and_behind_a_space():
    assert bad_word_ids(["a"], encode) == [(1,), (3,)]
    assert bad_word_ids([" a"], encode) == [(1,), (3,)]


def test_a_space_by_itself_is_not_ruled_out():
    # "ab" is one token, " ab" is " a" and "b".
    assert bad_word_ids(["ab"], encode) == [(6,)]


def test_a_word_that_no_token_writes_is_named():
    with pytest.raises(ParamsError, match="'z', which is no token"):
        bad_word_ids(["z"], encode)


def test_the_last_token_is_ruled_out_behind_the_others():
    words = BadWords([(7,), (1, 2), (1, 2, 3), (9, 2, 4)])
    assert words.reach == 2
    assert words.completions([]) == [7]
    assert words.completions([1]) == [7, 2]
    assert words.completions([5, 1, 2]) == [7, 3]
    assert words.completions([9, 2]) == [7, 4]
    assert words.completions([2, 1]) == [7, 2]

"""Finding words in text that arrives in pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from step3.server.markers import Found, Markers

MARKERS = Markers("<ab>", "</a>", '">')


def test_the_first_word_is_found():
    assert MARKERS.find('x</a><ab>"') == Found(1, "</a>", 5)
    assert MARKERS.find('x</a><ab>"', 2) == Found(5, "<ab>", 9)


def test_the_beginning_of_a_word_at_the_end_is_left():
    assert MARKERS.find("x<a") == Found(1, None, 1)
    assert MARKERS.find('x<a"') == Found(3, None, 3)
    assert MARKERS.find("x<a ") == Found(4, None, 4)
    assert MARKERS.find("<a", 1) == Found(2, None, 2)


@given(st.text(alphabet='<ab>/" ', max_size=40))
def test_one_character_at_a_time_finds_the_same_words(text):
    whole, position = [], 0
    while (found := MARKERS.find(text, position)).word:
        whole.append((found.plain_end, found.word))
        position = found.word_end
    pieces, held = [], ""
    for index, character in enumerate(text, start=1):
        held += character
        found = MARKERS.find(held)
        if found.word:
            pieces.append((index - len(found.word), found.word))
        held = held[found.word_end if found.word else found.plain_end :]
    assert pieces == whole

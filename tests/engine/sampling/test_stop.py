"""Stop strings: found wherever they are cut, and nothing shown that might still become one."""

import random

import pytest

from step3.engine.sampling.stop import StopPiece, StopStrings


def shown(stops, pieces, include=False, armed=True):
    """All that is shown, and what matched."""
    watch, text = StopStrings(stops, include).watch(), ""
    for piece in pieces:
        result = watch.feed(piece, armed)
        text += result.text
        if result.matched is not None:
            return text, result.matched
    return text + watch.flush(), None


def restated(stops, text):
    """The earliest end of any stop string, of several there the one given first: its place and itself."""
    for end in range(1, len(text) + 1):
        for stop in stops:
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


def test_text_ends_before_the_stop_string():
    assert shown(["END"], ["a b", "c END d"]) == ("a bc ", "END")


def test_or_behind_it_when_it_is_included():
    assert shown(["END"], ["a b", "c END d"], include=True) == ("a bc END", "END")


def test_a_stop_string_is_found_across_pieces():
    assert shown(["\n\n"], ["one\n", "\ntwo"]) == ("one", "\n\n")
    assert shown(["stop"], list("don't stop now")) == ("don't ", "stop")


def test_only_what_may_be_a_beginning_is_held_back():
    watch = StopStrings(["<end>"]).watch()
    assert watch.feed("abc<e") == StopPiece("abc")
    assert watch.feed("x") == StopPiece("<ex")
    assert watch.feed("<end") == StopPiece("")
    assert watch.flush() == "<end"
    assert watch.flush() == ""


def test_nothing_is_held_back_when_the_stop_string_stays_anyway():
    assert StopStrings(["<end>"], include=True).watch().feed("abc<e") == StopPiece("abc<e")


def test_without_stop_strings_text_passes_through():
    watch = StopStrings([]).watch()
    assert watch.feed("abc") == StopPiece("abc")
    assert watch.flush() == ""


def test_the_string_that_is_complete_first_wins():
    assert shown(["long stop", "on"], ["a long stop"]) == ("a l", "on")


def test_of_strings_complete_at_once_the_first_given_wins():
    assert shown(["b", "ab"], ["xab"]) == ("xa", "b")
    assert shown(["ab", "b"], ["xab"]) == ("x", "ab")


def test_a_string_that_is_complete_before_the_watch_is_armed_does_not_count():
    watch = StopStrings(["ab"]).watch()
    assert watch.feed("ab", armed=False).matched is None
    assert watch.feed("b").matched is None
    assert watch.feed("ab").matched == "ab"


def test_a_string_that_begins_before_the_watch_is_armed_counts():
    watch = StopStrings(["ab"]).watch()
    assert watch.feed("xa", armed=False) == StopPiece("x")
    assert watch.feed("b") == StopPiece("", "ab")


def test_outputs_of_one_request_are_watched_apart():
    stops = StopStrings(["ab"])
    one, other = stops.watch(), stops.watch()
    one.feed("a")
    assert other.feed("b").matched is None
    assert one.feed("b").matched == "ab"


@pytest.mark.parametrize("seed", range(200))
def test_any_text_in_any_pieces_equals_the_restatement(seed):
    rng = random.Random(seed)
    text = "".join(rng.choices("ab", k=40))
    stops = ["".join(rng.choices("ab", k=rng.randint(2, 9))) for _ in range(rng.randint(1, 5))]
    pieces, rest = [], text
    while rest:
        size = rng.randint(1, 6)
        pieces.append(rest[:size])
        rest = rest[size:]
    before, matched = restated(stops, text)
    assert shown(stops, pieces) == (before, matched)
    assert shown(stops, pieces, include=True) == (before + (matched or ""), matched)


def test_a_stop_string_that_almost_matches_everywhere_takes_linear_work():
    class Counted(StopStrings):
        steps = 0

        def step(self, node, char):
            Counted.steps += 1
            return super().step(node, char)

    stops = Counted(["a" * 500 + "b"])
    Counted.steps = 0
    watch = stops.watch()
    for _ in range(2000):
        watch.feed("a" * 10)
    assert Counted.steps == 20_000
    assert len(watch.flush()) == 500

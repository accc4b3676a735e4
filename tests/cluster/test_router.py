"""Requests go where there is room, and where their beginning is."""

from step3.cluster.router import BLOCK, MAX_BLOCKS, Place, block_names, choose

PROMPT = list(range(10 * BLOCK + 5))
NAMES = block_names(PROMPT, b"")


def test_equal_beginnings_have_equal_names() -> None:
    other = block_names([*PROMPT[: 4 * BLOCK], *range(1000, 1000 + 3 * BLOCK)], b"")
    assert len(NAMES) == 10
    assert other[:4] == NAMES[:4]
    assert other[4] != NAMES[4]
    assert block_names(PROMPT, b"salt")[0] != NAMES[0]


def test_the_emptier_instance_gets_it() -> None:
    places = {0: Place(10_000, held=500), 1: Place(10_000, held=100)}
    assert choose(places, NAMES, len(PROMPT)) == 1


def test_the_one_that_has_the_beginning_gets_it_unless_it_has_far_more_to_do() -> None:
    places = {0: Place(10_000), 1: Place(10_000)}
    places[1].remember(NAMES)
    assert choose(places, NAMES, len(PROMPT)) == 1
    places[1].held = 9 * BLOCK
    assert choose(places, NAMES, len(PROMPT)) == 1
    places[1].held = 11 * BLOCK
    assert choose(places, NAMES, len(PROMPT)) == 0


def test_one_without_room_is_the_last_choice() -> None:
    places = {0: Place(400, held=300), 1: Place(100_000, held=5000)}
    places[0].remember(NAMES)
    assert choose(places, NAMES, len(PROMPT)) == 1
    assert choose({0: places[0]}, NAMES, len(PROMPT)) == 0


def test_nobody_there_gets_nothing() -> None:
    assert choose({}, NAMES, len(PROMPT)) is None


def test_only_the_latest_blocks_are_remembered() -> None:
    place = Place(1)
    place.remember([b"first"])
    place.remember([number.to_bytes(4, "big") for number in range(MAX_BLOCKS)])
    assert place.matched([b"first"]) == 0
    assert place.matched([(MAX_BLOCKS - 1).to_bytes(4, "big")]) == 1

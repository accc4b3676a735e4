import re

from step3.nano.scenes.draw import Scene
from step3.nano.scenes.lessons import conclusion
from step3.nano.scenes.questions import listing
from step3.nano.scenes.split import split_of_scene
from step3.nano.scenes.stream import lesson, sample


def listed(text: str) -> list[tuple[str, ...]]:
    """Number, place, size, colour and shape of everything in the list of a lesson."""
    return re.findall(r"(\d) ([a-z ]+): (small|large) (\w+) (\w+)[,.]", text)


def test_the_same_seed_and_index_give_the_same_lesson() -> None:
    assert lesson(1, 5) == lesson(1, 5) != lesson(1, 9)


def test_what_a_drill_looks_for_is_read_and_what_it_finds_is_learned() -> None:
    for index in range(0, 80, 8):
        one = lesson(3, index)
        things = listed(one.text)
        assert 2 <= len(things) <= 5
        for (asked, is_learned), (found, found_is_learned) in zip(one.parts[1:], one.parts[2:], strict=False):
            if asked.startswith(" colour") and asked.removesuffix(":").split()[-1] in {t[4] for t in things}:
                shape = asked.removesuffix(":").split()[-1]
                assert (is_learned, found_is_learned) == (False, True)
                (colour,) = (t[3] for t in things if t[4] == shape)
                assert re.match(rf" {colour}\b", found)
            if asked.startswith(" count") and "all" not in asked:
                value = asked.removesuffix(":").split()[-1]
                numbers = [t[0] for t in things if value in t[3:]]
                assert found == f" {', '.join(numbers) or 'none'}; {len(numbers)}."


def test_no_drill_asks_the_same_twice() -> None:
    for index in range(0, 80, 8):
        steps = lesson(3, index).text.split("<think>\n")[1].split(".")[1:]
        assert len(steps) == len(set(steps))


def test_a_conversation_gives_the_list_and_teaches_what_follows_from_it() -> None:
    for index in range(6, 86, 8):
        one = lesson(3, index)
        learned = [part for part, is_learned in one.parts if is_learned]
        assert len(learned) >= 2
        assert all(part.endswith("<|EOT|>") and "\n</think>\n" in part for part in learned)
        assert not any(listed(part) for part in learned)


def test_words_without_sense_are_said_again() -> None:
    for index in range(1, 41, 2):
        (asked, _), (said, is_learned) = lesson(3, index).parts
        assert is_learned
        assert f"Repeat: {said}" in asked


def test_a_conclusion_and_the_list_make_the_whole_answer() -> None:
    one = sample(3, 0, mix={"colour": 1.0})
    assert isinstance(one.scene, Scene)
    assert split_of_scene(one.scene) == "train"
    assert listing(one.scene) + conclusion(one) == f"{one.reasoning}\n</think>\n{one.answer}<|EOT|>"

"""Each answer is worked out again from the question's words and the scene, by other means than the source."""

import itertools
import re
from collections import Counter
from collections.abc import Callable

import pytest

from step3.nano.scenes.draw import COLOURS, PLACES, SHAPES, Scene, Thing
from step3.nano.scenes.questions import PICTURE_QUESTIONS
from step3.nano.scenes.sample import Sample
from step3.nano.scenes.stream import samples


def asked(category: str, count: int = 250) -> list[Sample]:
    return list(itertools.islice(samples(11, mix={category: 1}), count))


def named(scene: Scene, words: str) -> list[Thing]:
    """The things that all the colours, shapes and places in `words` describe."""
    places = [place for place in sorted(PLACES, key=len, reverse=True) if f"the {place}" in words]
    found = [
        thing
        for thing in scene.things
        if all(thing.colour == c for c in COLOURS if c in words.split())
        and all(thing.shape == s for s in SHAPES if re.search(rf"\b{s}(e?s)?\b", words))
    ]
    if not places:
        return found
    sides = set(places[0].split())
    exact = [thing for thing in found if thing.place == places[0]]
    return (
        exact
        if len(sides) == 2 or sides == {"middle"}
        else [t for t in found if sides & set(t.place.split())]
    )


def words_of(sample: Sample) -> str:
    return re.sub(r"[^a-z ]", " ", sample.question.lower()).replace("color", "colour").strip()


def colour_of(sample: Sample) -> str:
    assert sample.scene is not None
    if sample.scene.number is not None:
        assert "number" in sample.question.lower()
        return f"It is {sample.scene.number.colour}."
    (thing,) = named(sample.scene, words_of(sample))
    return f"It is {thing.colour}."


def shape_of(sample: Sample) -> str:
    assert sample.scene is not None
    (thing,) = named(sample.scene, words_of(sample))
    return f"It is a {thing.shape}."


def size_of(sample: Sample) -> str:
    assert sample.scene is not None
    (thing,) = named(sample.scene, words_of(sample))
    return f"It is {'large' if thing.radius > 0.13 else 'small'}."


def count_of(sample: Sample) -> str:
    assert sample.scene is not None
    count = len(named(sample.scene, words_of(sample)))
    return f"There {'is' if count == 1 else 'are'} {count}."


def exists_of(sample: Sample) -> str:
    assert sample.scene is not None
    words = words_of(sample)
    if sample.kind == "is":
        shape = re.match(r"is the (\w+) (\w+)", words)
        assert shape is not None
        (thing,) = named(sample.scene, shape[1])
        return f"{'Yes' if thing.colour == shape[2] else 'No'}, it is {thing.colour}."
    noun = re.sub(r".*?\ban? ", "", words).removesuffix(" in the picture")
    if named(sample.scene, noun):
        return f"Yes, there is {'an' if noun[0] in 'aeiou' else 'a'} {noun}."
    return f"No, there is no {noun}."


def number_of(sample: Sample) -> str:
    assert sample.scene is not None
    number = sample.scene.number
    return "There is no number." if number is None else f"The number is {number.text}."


def position_of(sample: Sample) -> str:
    assert sample.scene is not None
    words = words_of(sample)
    if words.startswith(("where", "in which")):
        (thing,) = named(sample.scene, re.sub(r".* the ", "", words))
        column, row = int(thing.x * 3), int(thing.y * 3)
        name = " ".join(w for w in (("top", "", "bottom")[row], ("left", "", "right")[column]) if w)
        return f"It is at the {name}." if name else "It is in the middle."
    match = re.fullmatch(r"is the (.*?) (left|right|above|below)(?: or \w+)?(?: of)? the (.*)", words)
    assert match is not None
    (one,), (other,) = named(sample.scene, match[1]), named(sample.scene, match[3])
    if match[2] in ("left", "right"):
        true, gap = ("left" if one.x < other.x else "right"), abs(one.x - other.x)
    else:
        true, gap = ("above" if one.y < other.y else "below"), abs(one.y - other.y)
    assert gap > 0.15
    place = f"it is {true}{' of' if true in ('left', 'right') else ''} the {match[3]}."
    if " or " in words:
        return place.replace("it", "It", 1)
    return f"{'Yes' if true == match[2] else 'No'}, {place}"


def description_of(sample: Sample) -> str:
    assert sample.scene is not None
    number = sample.scene.number
    if number is not None:
        return f"The number {number.text}, written in {number.colour}."
    parts = []
    for thing in sample.scene.things:
        where = "in the middle" if thing.cell == 4 else f"at the {thing.place}"
        parts.append(f"a {'large' if thing.radius > 0.13 else 'small'} {thing.colour} {thing.shape} {where}")
    text = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]
    return text.replace("a", "A", 1) + "."


ANSWERS: dict[str, Callable[[Sample], str]] = {
    "colour": colour_of,
    "shape": shape_of,
    "size": size_of,
    "count": count_of,
    "exists": exists_of,
    "number": number_of,
    "position": position_of,
    "describe": description_of,
}


def test_every_kind_of_question_is_checked_here() -> None:
    assert set(ANSWERS) == set(PICTURE_QUESTIONS)


@pytest.mark.parametrize("category", PICTURE_QUESTIONS)
def test_answers_follow_from_the_scene(category: str) -> None:
    for sample in asked(category):
        assert sample.category == category
        assert sample.answer == ANSWERS[category](sample), sample.question


@pytest.mark.parametrize("category", PICTURE_QUESTIONS)
def test_reasoning_begins_with_the_whole_picture(category: str) -> None:
    for sample in asked(category, 60):
        assert sample.scene is not None
        number = sample.scene.number
        if number is not None:
            said = re.match(r"(\d) digits?, (\w+): ([\d ]+)\.", sample.reasoning)
            assert said is not None
            assert (int(said[1]), said[2], said[3].split()) == (
                len(number.text),
                number.colour,
                list(number.text),
            )
            continue
        said_things = re.findall(r"(\d) ([a-z ]+): (small|large) (\w+) (\w+)[,.]", sample.reasoning)
        assert said_things == [
            (str(i), PLACES[t.cell], t.size, t.colour, t.shape) for i, t in enumerate(sample.scene.things, 1)
        ]


def test_yes_and_no_are_equally_frequent() -> None:
    for category, kinds in (("exists", None), ("position", {"yes or no"})):
        words = Counter(s.expected[0] for s in asked(category, 1500) if kinds is None or s.kind in kinds)
        assert set(words) == {"yes", "no"}
        assert 0.44 < words["yes"] / words.total() < 0.56


def test_no_answer_to_a_count_is_most_of_them() -> None:
    counts = Counter(s.expected[0] for s in asked("count", 1500))
    assert set(counts) == {"0", "1", "2", "3", "4", "5"}
    assert counts.most_common(1)[0][1] / counts.total() < 0.5


def test_questions_come_in_both_spellings_and_in_lower_case() -> None:
    questions = [s.question for s in asked("colour")]
    assert any("colour" in q for q in questions)
    assert any("color" in q for q in questions)
    assert any(q[0].islower() for q in questions)
    assert any(not q.endswith(("?", ".")) for q in questions)

"""Questions about a scene, with reasoning and answers that follow from its content.

Every reasoning about shapes begins with the same list, place by place in reading order, and ends with
the step that this question needs; so each sample teaches the whole picture. The step says first what it looks
for, `colour ring: pink.`, so that all that looking it up needs stands close by.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from step3.nano.scenes.draw import COLOURS, SHAPES, Scene, Thing
from step3.nano.scenes.sample import Sample

THINGS = ("thing", "object", "shape")


def plain_variant(rng: Random, text: str) -> str:
    """The question as somebody might type it: American spelling, lower case, no question mark."""
    if rng.random() < 0.5:
        text = text.replace("colour", "color").replace("Colour", "Color")
    if rng.random() < 0.3:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.25:
        text = text.rstrip("?.")
    return text


def listing(scene: Scene) -> str:
    """The picture in words: `1 top left: large red circle, 2 middle: small blue star.`"""
    if scene.number is not None:
        digits = scene.number.text
        noun = "digit" if len(digits) == 1 else "digits"
        return f"{len(digits)} {noun}, {scene.number.colour}: {' '.join(digits)}."
    things = (f"{i} {t.place}: {t.size} {t.colour} {t.shape}" for i, t in enumerate(scene.things, 1))
    return ", ".join(things) + "."


def place_phrase(place: str) -> str:
    return "in the middle" if place == "middle" else f"at the {place}"


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _sample(
    rng: Random, scene: Scene, category: str, kind: str, question: str, step: str, answer: str, *expected: str
) -> Sample:
    reasoning = f"{listing(scene)} {step}".rstrip()
    return Sample(category, kind, plain_variant(rng, question), reasoning, answer, expected, scene)


def _names(scene: Scene) -> dict[str, Thing]:
    """Phrases that mean exactly one thing: its shape, its colour or both, whichever suffice."""
    shapes = [t.shape for t in scene.things]
    both = [(t.colour, t.shape) for t in scene.things]
    names = {t.shape: t for t in scene.things if shapes.count(t.shape) == 1}
    names |= {f"{t.colour} {t.shape}": t for t in scene.things if both.count((t.colour, t.shape)) == 1}
    return names


def _well_placed(scene: Scene) -> list[Thing]:
    """Things whose place names no other: `at the top` only when the top row holds nothing else."""
    edges = {
        "top": [t for t in scene.things if t.row == "top"],
        "bottom": [t for t in scene.things if t.row == "bottom"],
        "left": [t for t in scene.things if t.column == "left"],
        "right": [t for t in scene.things if t.column == "right"],
    }
    return [t for t in scene.things if len(edges.get(t.place, ())) <= 1]


def ask_colour(rng: Random, scene: Scene) -> Sample | None:
    """What colour is the star (or the thing at a place, or the number)?"""
    if scene.number is not None:
        colour = scene.number.colour
        question = rng.choice(("What colour is the number?", "Which colour does the number have?"))
        return _sample(rng, scene, "colour", "number", question, "", f"It is {colour}.", colour)
    placed = _well_placed(scene)
    single = [t for t in scene.things if [u.shape for u in scene.things].count(t.shape) == 1]
    if len(scene.things) == 1 and rng.random() < 0.5:
        thing, noun, kind = scene.things[0], rng.choice(THINGS), "only"
    elif single and rng.random() < 0.7:
        thing, kind = rng.choice(single), "shape"
        noun = thing.shape
    elif len(scene.things) > 1 and placed:
        thing, kind = rng.choice(placed), "place"
        noun = f"{rng.choice(THINGS)} {place_phrase(thing.place)}"
    else:
        return None
    question = rng.choice(
        (
            "What colour is the {}?",
            "What colour is the {}?",
            "What's the colour of the {}?",
            "Which colour is the {}?",
            "What is the colour of the {}?",
            "Which colour does the {} have?",
            "Tell me the colour of the {}.",
        )
    )
    step = f"colour {thing.place if kind == 'place' else thing.shape}: {thing.colour}."
    answer = f"It is {thing.colour}."
    return _sample(rng, scene, "colour", kind, question.format(noun), step, answer, thing.colour)


def ask_shape(rng: Random, scene: Scene) -> Sample | None:
    """Which shape is it, is red, is at a place?"""
    if not scene.things:
        return None
    placed = _well_placed(scene)
    single = [t for t in scene.things if [u.colour for u in scene.things].count(t.colour) == 1]
    if len(scene.things) == 1 and rng.random() < 0.5:
        thing, kind = scene.things[0], "only"
        question = rng.choice(("Which shape is it?", "What shape is this?", "Which shape do you see?"))
    elif single and rng.random() < 0.7:
        thing, kind = rng.choice(single), "colour"
        question = rng.choice(
            ("Which shape is {}?", "What shape is the {} one?", "What is the {} thing?", "Which thing is {}?")
        ).format(thing.colour)
    elif len(scene.things) > 1 and placed:
        thing, kind = rng.choice(placed), "place"
        question = rng.choice(("Which shape is {}?", "What is {}?", "What shape is {}?")).format(
            place_phrase(thing.place)
        )
    else:
        return None
    step = f"shape {thing.place if kind == 'place' else thing.colour}: {thing.shape}."
    answer = f"It is {with_article(thing.shape)}."
    return _sample(rng, scene, "shape", kind, question, step, answer, thing.shape)


def ask_size(rng: Random, scene: Scene) -> Sample | None:
    """Is the star small or large?"""
    names = _names(scene)
    if not names:
        return None
    name = rng.choice(list(names))
    thing = names[name]
    question = rng.choice(("Is the {} small or large?", "Is the {} large or small?", "What size is the {}?"))
    step, answer = f"size {name}: {thing.size}.", f"It is {thing.size}."
    return _sample(rng, scene, "size", "either", question.format(name), step, answer, thing.size)


def ask_count(rng: Random, scene: Scene) -> Sample | None:
    """How many things are there, or how many are red, or circles?"""
    if not scene.things:
        return None
    if rng.random() < 0.5:
        question = rng.choice(
            (
                "How many {}s are there?",
                "How many {}s do you see?",
                "Count the {}s.",
                "How many {}s are in the picture?",
            )
        ).format(rng.choice(THINGS))
        total = len(scene.things)
        step, answer = f"count all: {total}.", _there_are(total)
        return _sample(rng, scene, "count", "all", question, step, answer, str(total))
    by_colour = rng.random() < 0.5
    seen = [t.colour if by_colour else t.shape for t in scene.things]
    if rng.random() < 0.15:
        value = rng.choice(list(COLOURS) if by_colour else SHAPES)
    else:
        # The count first, then what has it: else nearly every answer would be one.
        count = rng.choice(sorted({seen.count(value) for value in seen}))
        value = rng.choice(sorted({value for value in seen if seen.count(value) == count}))
    chosen = [i for i, t in enumerate(scene.things, 1) if value in (t.colour, t.shape)]
    if by_colour:
        question = rng.choice(
            (
                f"How many {value} {rng.choice(THINGS)}s are there?",
                f"How many {rng.choice(THINGS)}s are {value}?",
            )
        )
    else:
        plural = "crosses" if value == "cross" else f"{value}s"
        question = rng.choice(
            (f"How many {plural} are there?", f"How many {plural} do you see?", f"Count the {plural}.")
        )
    step = f"count {value}: {', '.join(map(str, chosen)) or 'none'}; {len(chosen)}."
    kind = "colour" if by_colour else "shape"
    return _sample(rng, scene, "count", kind, question, step, _there_are(len(chosen)), str(len(chosen)))


def _there_are(count: int) -> str:
    return f"There {'is' if count == 1 else 'are'} {count}."


def ask_exists(rng: Random, scene: Scene) -> Sample:
    """Is there a blue ring? Half of the answers are no; most of those miss by one property only."""
    if scene.things and rng.random() < 0.15:
        asked = _ask_is(rng, scene)
        if asked is not None:
            return asked
    there = sorted({(t.colour, t.shape) for t in scene.things})
    yes = bool(there) and rng.random() < 0.5
    kind = rng.choices(("colour and shape", "shape", "colour"), (5, 3, 2))[0]
    if yes:
        colour, shape = rng.choice(there)
        colour, shape = ("" if kind == "shape" else colour), ("" if kind == "colour" else shape)
    elif kind == "shape":
        colour, shape = "", rng.choice([s for s in SHAPES if s not in {shape for _, shape in there}])
    elif kind == "colour":
        colour, shape = rng.choice([c for c in COLOURS if c not in {colour for colour, _ in there}]), ""
    else:
        absent = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in there]
        near = [(c, s) for c, s in absent if any((c == colour) != (s == shape) for colour, shape in there)]
        colour, shape = rng.choice(near if near and rng.random() < 0.6 else absent)
    noun = {"shape": shape, "colour": f"{colour} thing"}.get(kind, f"{colour} {shape}")
    question = rng.choice(
        (
            "Is there {}?",
            "Is there {} in the picture?",
            "Do you see {}?",
            "Can you see {}?",
            "Does the picture show {}?",
        )
    ).format(with_article(noun))
    word = "yes" if yes else "no"
    answer = f"Yes, there is {with_article(noun)}." if yes else f"No, there is no {noun}."
    chosen = (
        [i for i, t in enumerate(scene.things, 1) if colour in ("", t.colour) and shape in ("", t.shape)]
        if yes
        else []
    )
    step = f"find {noun}: {', '.join(map(str, chosen)) or 'none'}; {word}."
    return _sample(rng, scene, "exists", kind, question, step, answer, word)


def _ask_is(rng: Random, scene: Scene) -> Sample | None:
    """Is the star red?"""
    single = [t for t in scene.things if [u.shape for u in scene.things].count(t.shape) == 1]
    if not single:
        return None
    thing = rng.choice(single)
    yes = rng.random() < 0.5
    others = [t.colour for t in scene.things if t.colour != thing.colour]
    wrong = rng.choice(others or [c for c in COLOURS if c != thing.colour])
    named = thing.colour if yes else wrong
    question = f"Is the {thing.shape} {named}?"
    word = "yes" if yes else "no"
    step = f"colour {thing.shape}: {thing.colour}; asked {named}: {word}."
    answer = f"{word.capitalize()}, it is {thing.colour}."
    return _sample(rng, scene, "exists", "is", question, step, answer, word)


def ask_number(rng: Random, scene: Scene) -> Sample:
    """What number is written?"""
    question = rng.choice(
        (
            "What number is written?",
            "Which number is this?",
            "What number do you see?",
            "Read the number.",
            "What does the picture say?",
            "Which number is in the picture?",
            "What is the number?",
            "Which number is written here?",
            "What's the number?",
        )
    )
    if scene.number is None:
        return _sample(rng, scene, "number", "none", question, "no number.", "There is no number.", "none")
    text = scene.number.text
    return _sample(rng, scene, "number", f"{len(text)} digits", question, "", f"The number is {text}.", text)


def ask_position(rng: Random, scene: Scene) -> Sample | None:
    """Where is the star, or is it left or right of (above or below) the circle?"""
    names = _names(scene)
    if not names:
        return None
    if len(names) < 2 or rng.random() < 0.35:
        name, thing = rng.choice(list(names.items()))
        question = rng.choice(("Where is the {}?", "In which part of the picture is the {}?"))
        step, answer = f"place {name}: {thing.place}.", f"It is {place_phrase(thing.place)}."
        return _sample(rng, scene, "position", "where", question.format(name), step, answer, thing.place)
    (name, thing), (other_name, other) = rng.sample(list(names.items()), 2)
    sideways = rng.random() < 0.5
    at, other_at = (thing.column, other.column) if sideways else (thing.row, other.row)
    if at == other_at:
        return None
    order = ("left", "middle", "right") if sideways else ("top", "middle", "bottom")
    first, second = ("left of", "right of") if sideways else ("above", "below")
    relation = first if order.index(at) < order.index(other_at) else second
    axis = "column" if sideways else "row"
    step = f"{axis} {name}: {at}; {axis} {other_name}: {other_at}; {relation}."
    if rng.random() < 0.6:
        either = f"{first.removesuffix(' of')} or {second}"
        question = f"Is the {name} {either} the {other_name}?"
        answer = f"It is {relation} the {other_name}."
        return _sample(rng, scene, "position", "either", question, step, answer, relation.removesuffix(" of"))
    asked = rng.choice((first, second))
    word = "yes" if asked == relation else "no"
    answer = f"{word.capitalize()}, it is {relation} the {other_name}."
    question = f"Is the {name} {asked} the {other_name}?"
    return _sample(rng, scene, "position", "yes or no", question, step, answer, word)


def ask_describe(rng: Random, scene: Scene) -> Sample:
    """Describe the picture: every thing with size, colour, shape and place, or the number."""
    question = rng.choice(
        (
            "Describe the picture.",
            "What is in this picture?",
            "What do you see?",
            "Describe the image.",
            "What does the picture show?",
            "What is in the image?",
            "What is in the picture?",
            "What's in the picture?",
            "What is this?",
            "What can you see?",
            "Tell me what you see.",
        )
    )
    if scene.number is not None:
        number = scene.number
        answer = f"The number {number.text}, written in {number.colour}."
        return _sample(
            rng, scene, "describe", "number", question, "", answer, f"{number.colour} {number.text}"
        )
    parts = [
        f"{with_article(f'{t.size} {t.colour} {t.shape}')} {place_phrase(t.place)}" for t in scene.things
    ]
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    expected = [f"{t.size} {t.colour} {t.shape} {t.place}" for t in scene.things]
    return _sample(rng, scene, "describe", "things", question, "", f"{text[0].upper()}{text[1:]}.", *expected)


PICTURE_QUESTIONS: dict[str, Callable[[Random, Scene], Sample | None]] = {
    "colour": ask_colour,
    "shape": ask_shape,
    "size": ask_size,
    "count": ask_count,
    "exists": ask_exists,
    "number": ask_number,
    "position": ask_position,
    "describe": ask_describe,
}

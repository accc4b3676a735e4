"""Endless samples, each a pure function of seed, split and index."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from step3.nano.scenes.draw import STAGES, Difficulty, Scene, draw_crowd, draw_scene
from step3.nano.scenes.lessons import Lesson, drill, look_up, repeat
from step3.nano.scenes.questions import (
    PICTURE_QUESTIONS,
    ask_colour,
    ask_count,
    ask_describe,
    ask_number,
    ask_shape,
)
from step3.nano.scenes.sample import Sample, messages, reply
from step3.nano.scenes.split import Split, split_of_scene
from step3.nano.scenes.sums import ask_sum
from step3.nano.scenes.talk import ask_talk
from step3.nano.scenes.tools import ask_tool, ask_tool_result, offer

TEXT_CATEGORIES = ("sum", "greeting", "identity", "unknown", "tool", "tool_result")
CATEGORIES = (*PICTURE_QUESTIONS, *TEXT_CATEGORIES)

# One thing or one digit; up to three things or two digits; everything.
MIXES: tuple[Mapping[str, float], ...] = (
    {"colour": 1, "shape": 2, "number": 2, "describe": 2},
    {"colour": 1, "shape": 2, "size": 1, "count": 1, "exists": 1, "number": 2, "position": 1, "describe": 2},
    {
        "colour": 1.0, "shape": 1.2, "size": 0.6, "count": 1.2, "exists": 1.2, "number": 1.5, "position": 1.2,
        "describe": 1.2, "sum": 1.5, "greeting": 0.2, "identity": 0.3, "unknown": 0.3, "tool": 1.2,
        "tool_result": 0.2,
    },
)  # fmt: skip

_SYSTEMS = (
    "You are a friendly assistant.", "You are Step3.", "Answer briefly.", "You are a helpful AI assistant.",
    "You answer questions about pictures.", "Be short and exact.", "You are an assistant that sees pictures.",
)  # fmt: skip

# Categories that now and then ask of the other kind of picture: a number's colour, a missing number.
_NUMBER_SCENES = {"number": 0.95, "colour": 0.08, "exists": 0.04, "describe": 0.25}


@dataclass(frozen=True)
class Conversation:
    """Several questions about one scene. Each sample stands alone; join them as the training likes."""

    scene: Scene
    turns: tuple[Sample, ...]


def _rng(seed: int, split: Split, kind: str, index: int) -> Random:
    digest = hashlib.blake2b(f"{seed}/{split}/{kind}/{index}".encode(), digest_size=8).digest()
    return Random(int.from_bytes(digest, "big"))


def scene(seed: int, index: int, split: Split = "train", difficulty: Difficulty = STAGES[-1]) -> Scene:
    """Scene `index` of `seed`, with what `split` allows."""
    return _split_scene(_rng(seed, split, "scene", index), split, difficulty, None)


def number_scene(seed: int, index: int, difficulty: Difficulty) -> Scene:
    """A printed number for training, not among those kept for evaluation."""
    return _split_scene(_rng(seed, "train", "number", index), "train", difficulty, True)


def crowd(seed: int, index: int, difficulty: Difficulty) -> Scene:
    """A picture full of shapes and digits, for training the tower; see `draw_crowd`."""
    return draw_crowd(_rng(seed, "train", "crowd", index), difficulty)


def lesson(seed: int, index: int, difficulty: Difficulty = STAGES[-1], with_pictures: bool = False) -> Lesson:
    """Lesson `index` of `seed`, for training: one half to look things up, the other to copy."""
    rng = _rng(seed, "train", "lesson", index)
    if index % 2:
        return repeat(rng)
    several = replace(difficulty, things=(2, difficulty.things[1]))
    drawn = _split_scene(rng, "train", several, False)
    if index % 8 == 6:
        return look_up(rng, drawn)
    return drill(rng, drawn, with_picture=with_pictures and index % 8 != 4)


def _split_scene(rng: Random, split: Split, difficulty: Difficulty, number: bool | None) -> Scene:
    if number is None:
        number = rng.random() < difficulty.number_share
    while True:
        drawn = draw_scene(rng, difficulty, number=number)
        if split_of_scene(drawn) == split:
            return drawn


def sample(
    seed: int,
    index: int,
    split: Split = "train",
    mix: Mapping[str, float] = MIXES[-1],
    difficulty: Difficulty = STAGES[-1],
) -> Sample:
    """Sample `index` of `seed`: the same for the same arguments, whatever was drawn before."""
    rng = _rng(seed, split, "sample", index)
    category = rng.choices(list(mix), list(mix.values()))[0]
    if category in PICTURE_QUESTIONS:
        asked = _ask_picture(rng, category, split, difficulty)
    elif category == "sum":
        asked = ask_sum(rng, split)
    elif category == "tool":
        asked = ask_tool(rng, split)
    elif category == "tool_result":
        asked = ask_tool_result(rng, split)
    else:
        asked = ask_talk(rng, category, split)
        if rng.random() < 0.1:
            asked = replace(asked, tools=offer(rng, rng.randint(1, 3)))
    return _in_context(rng, asked, split, difficulty)


def _ask_picture(rng: Random, category: str, split: Split, difficulty: Difficulty) -> Sample:
    while True:
        number = rng.random() < _NUMBER_SCENES.get(category, 0.0)
        asked = PICTURE_QUESTIONS[category](rng, _split_scene(rng, split, difficulty, number))
        if asked is not None:
            return asked


def _in_context(rng: Random, asked: Sample, split: Split, difficulty: Difficulty) -> Sample:
    """Now and then another system message, an earlier turn, or a picture that the question ignores."""
    chance = rng.random()
    if chance < 0.04:
        return replace(asked, system=rng.choice(_SYSTEMS))
    if chance > 0.12 or asked.past or asked.tools:
        return asked
    if asked.scene is not None:
        earlier = rng.choice((ask_colour, ask_count, ask_shape, ask_number, ask_describe))(rng, asked.scene)
        return asked if earlier is None else replace(asked, past=_turn(earlier))
    if asked.kind == "no picture":
        return asked
    if chance < 0.08:
        return replace(asked, past=_turn(ask_talk(rng, "greeting", split)))
    return replace(asked, scene=_split_scene(rng, split, difficulty, None))


def _turn(earlier: Sample) -> tuple[Mapping[str, Any], ...]:
    """A finished turn as a client sends it back: without its reasoning."""
    answer = {key: value for key, value in reply(earlier).items() if key != "reasoning_content"}
    return (*messages(earlier), answer)


def samples(
    seed: int,
    split: Split = "train",
    mix: Mapping[str, float] = MIXES[-1],
    difficulty: Difficulty = STAGES[-1],
    start: int = 0,
) -> Iterator[Sample]:
    """Samples `start`, `start` + 1, ... without end."""
    return (sample(seed, index, split, mix, difficulty) for index in itertools.count(start))


def conversation(
    seed: int,
    index: int,
    split: Split = "train",
    difficulty: Difficulty = STAGES[-1],
    turns: int = 4,
    mix: Mapping[str, float] = MIXES[-1],
) -> Conversation:
    """`turns` questions about one scene; on a number fewer, as there is less to ask.

    `mix` weighs the kinds of question; only its picture categories count.
    """
    rng = _rng(seed, split, "conversation", index)
    drawn = _split_scene(rng, split, difficulty, None)
    if drawn.number is not None:
        weights = {c: w for c, w in mix.items() if c in ("number", "colour", "describe")}
        turns = min(turns, len(weights))
    else:
        weights = {c: w for c, w in mix.items() if c in PICTURE_QUESTIONS}
    asked: list[Sample] = []
    for _ in range(20 * turns):
        category = rng.choices(list(weights), list(weights.values()))[0]
        one = PICTURE_QUESTIONS[category](rng, drawn)
        if one is not None and all((one.category, one.expected) != (a.category, a.expected) for a in asked):
            asked.append(one)
        if len(asked) == turns:
            break
    return Conversation(drawn, tuple(asked))

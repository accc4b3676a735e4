import itertools
from collections import Counter

import pytest

from step3.nano.scenes.draw import COLOURS, STAGES, Ground, Number, Scene
from step3.nano.scenes.sample import Sample, completion_text, messages, prompt_text
from step3.nano.scenes.split import Split, split_of_scene
from step3.nano.scenes.stream import (
    CATEGORIES,
    MIXES,
    TEXT_CATEGORIES,
    conversation,
    sample,
    samples,
    scene,
)
from step3.nano.scenes.talk import TOPICS


def some(split: Split, count: int = 600, category: str | None = None, seed: int = 1) -> list[Sample]:
    mix = MIXES[2] if category is None else {category: 1.0}
    return list(itertools.islice(samples(seed, split, mix), count))


def content(one: Scene) -> object:
    if one.number is not None:
        text = one.number.text
        return text if len(text) > 1 else (text, one.number.colour)
    return tuple((t.size, t.colour, t.shape, t.cell) for t in one.things)


def test_a_sample_depends_on_seed_split_and_index_alone() -> None:
    ahead = sample(1, 41)
    assert some("train")[41] == ahead
    assert next(samples(1, start=41)) == ahead
    assert sample(2, 41) != ahead
    assert sample(1, 42) != ahead
    assert sample(1, 41, "eval") != ahead
    assert conversation(1, 5) == conversation(1, 5)
    assert scene(1, 5) == scene(1, 5) != scene(1, 6)


def test_the_contents_of_training_and_evaluation_are_disjoint() -> None:
    sides = []
    for split in ("train", "eval"):
        drawn = some(split, 700, seed=1) + some(split, 200, seed=2)
        sides.append({content(s.scene) for s in drawn if s.scene is not None})
        assert all(split_of_scene(s.scene) == split for s in drawn if s.scene is not None)
    assert not sides[0] & sides[1]
    assert min(len(side) for side in sides) > 150


@pytest.mark.parametrize("category", TEXT_CATEGORIES)
def test_no_text_of_evaluation_occurs_in_training(category: str) -> None:
    def words(split: Split) -> set[str]:
        return {f"{s.past if s.from_tool else ''}{s.question}" for s in some(split, 700, category)}

    assert not words("train") & words("eval")


def test_a_sum_and_its_mirror_image_are_on_the_same_side() -> None:
    def pairs(split: Split) -> set[frozenset[str]]:
        plus = (s for s in some(split, 1500, "sum") if s.kind == "plus")
        return {frozenset(s.answer.split(" = ")[0].split(" + ")) for s in plus}

    assert not pairs("train") & pairs("eval")


def test_numbers_held_out_spread_over_the_digits_of_each_place() -> None:
    ground = Ground("plain", (0, 0, 0), (0, 0, 0))
    held_out = {
        text
        for text in map(str, range(1000))
        for colour in COLOURS
        if split_of_scene(
            Scene(9, 9, ground, number=Number(text, colour, 0.5, 0.5, 0.5, 1.0, 4, 0.0, (255, 0, 0)))
        )
        == "eval"
    }
    for length, count, most in ((1, 10, 1), (2, 9, 1), (3, 90, 10)):
        texts = [text for text in held_out if len(text) == length]
        assert len(texts) == count
        for place in range(length):
            digits = Counter(text[place] for text in texts)
            assert len(digits) >= 9
            assert set(digits.values()) <= {most - 1, most}


def test_every_topic_is_asked_about_on_both_sides() -> None:
    for category in ("greeting", "identity", "unknown"):
        kinds = {topic.kind for topic in TOPICS if topic.category == category}
        for split in ("train", "eval"):
            assert {s.kind for s in some(split, 200, category)} == kinds


def test_the_mix_weighs_the_categories() -> None:
    assert set(MIXES[2]) == set(CATEGORIES)
    seen = Counter(s.category for s in some("train", 3000))
    for category, weight in MIXES[2].items():
        assert seen[category] / 3000 == pytest.approx(weight / sum(MIXES[2].values()), abs=0.025)


def test_the_stage_bounds_the_pictures() -> None:
    for one in itertools.islice(samples(3, mix=MIXES[0], difficulty=STAGES[0]), 200):
        assert one.scene is not None
        assert len(one.scene.things) <= 1


def test_a_question_about_a_picture_brings_exactly_one_picture() -> None:
    for one in some("train", 1500):
        images = [
            part
            for message in messages(one)
            if isinstance(message["content"], list)
            for part in message["content"]
            if part["type"] == "image"
        ]
        assert len(images) == (one.scene is not None) == prompt_text(one).count("<im_patch>")


def test_some_samples_have_earlier_turns_other_system_messages_and_pictures_to_ignore() -> None:
    drawn = some("train", 3000)
    assert any(s.past and s.scene is not None for s in drawn)
    assert any(s.past and s.scene is None and not s.from_tool for s in drawn)
    assert any(messages(s)[0]["role"] == "system" for s in drawn)
    assert any(s.scene is not None and s.category in TEXT_CATEGORIES for s in drawn)


def test_a_conversation_asks_different_things_about_one_scene() -> None:
    for index in range(100):
        talk = conversation(1, index)
        assert all(turn.scene == talk.scene for turn in talk.turns)
        assert 3 <= len(talk.turns) <= 4
        assert len({(t.category, t.expected) for t in talk.turns}) == len(talk.turns)


def test_prompt_and_completion_have_step3s_shape() -> None:
    one = next(
        s for s in some("train") if s.category == "colour" and not s.past and "You are a help" in s.system
    )
    assert prompt_text(one) == (
        "<｜begin▁of▁sentence｜>You are a helpful assistant.<|BOT|>user\n"
        f"<im_patch>{one.question}<|EOT|><|BOT|>assistant\n<think>\n"
    )
    assert completion_text(one) == f"{one.reasoning}\n</think>\n{one.answer}<|EOT|>"

"""Exercises for what a language model cannot do without: to look things up in what it has read, and to copy.

A picture's question spends nearly all of its tokens on naming what is in the picture. Here the list is given
and many questions about it follow each other, so that nearly all that is learned is how to look up an entry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from step3.nano.scenes.draw import Scene
from step3.nano.scenes.questions import PICTURE_QUESTIONS, listing
from step3.nano.scenes.sample import DEFAULT_SYSTEM, Sample
from step3.nano.scenes.toolbox import draw_strange

# Position is the hardest to look up, shape and size go along with colour.
_LOOKUPS = {"colour": 1.0, "shape": 1.0, "size": 0.6, "count": 1.5, "exists": 2.0, "position": 2.0}
_TURNS = 6
_STEPS = 24
_LOOKED_FOR = re.compile("((?:^|;)[a-z ]+:)")
# How a later turn begins, where the list stands further up.
_LISTED = "As above."


@dataclass(frozen=True)
class Lesson:
    """A text in parts; of each, whether its tokens are to be learned or only read.

    With a `scene` the text holds one `<im_patch>`, where its picture stands.
    """

    parts: tuple[tuple[str, bool], ...]
    scene: Scene | None = None

    @property
    def text(self) -> str:
        return "".join(part for part, _ in self.parts)


def conclusion(sample: Sample) -> str:
    """What the model writes behind the list of what is in the picture: the last step and the answer."""
    assert sample.scene is not None
    step = sample.reasoning.removeprefix(listing(sample.scene))
    return f"{step}\n</think>\n{sample.answer}<|EOT|>"


def look_up(rng: Random, scene: Scene) -> Lesson:
    """Questions about `scene`, which holds things, with the list of them in place of the picture."""
    parts = [(f"<｜begin▁of▁sentence｜>{DEFAULT_SYSTEM}", False)]
    seen = set()
    listed = listing(scene)
    for _ in range(_TURNS):
        category = rng.choices(list(_LOOKUPS), list(_LOOKUPS.values()))[0]
        asked = PICTURE_QUESTIONS[category](rng, scene)
        if asked is None or asked.question in seen:
            continue
        seen.add(asked.question)
        question = f"<|BOT|>user\n{asked.question}<|EOT|><|BOT|>assistant\n<think>\n{listed}"
        parts += [(question, False), (conclusion(asked), True)]
        listed = _LISTED
    return Lesson(tuple(parts))


def drill(rng: Random, scene: Scene, with_picture: bool = False) -> Lesson:
    """The list of what is in `scene`, which holds things, then step after step that looks something up.

    What is looked for is given; only what is found is to be learned.
    """
    picture = "<im_patch>" if with_picture else ""
    asked = f"<｜begin▁of▁sentence｜>{DEFAULT_SYSTEM}<|BOT|>user\n{picture}Drill.<|EOT|><|BOT|>assistant\n"
    parts = [(f"{asked}<think>\n{listing(scene)}", False)]
    seen = {""}
    for _ in range(_STEPS):
        category = rng.choices(list(_LOOKUPS), list(_LOOKUPS.values()))[0]
        sample = PICTURE_QUESTIONS[category](rng, scene)
        step = "" if sample is None else sample.reasoning.removeprefix(listing(scene))
        if step in seen:
            continue
        seen.add(step)
        # Odd parts are what is looked for: `colour ring:`
        found = _LOOKED_FOR.split(step)
        parts += [(part, i % 2 == 0) for i, part in enumerate(found) if part]
    return Lesson(tuple(parts), scene if with_picture else None)


def repeat(rng: Random) -> Lesson:
    """Words without sense, said again."""
    words = " ".join(draw_strange(rng) for _ in range(rng.randint(3, 12)))
    asked = f"<｜begin▁of▁sentence｜>{DEFAULT_SYSTEM}<|BOT|>user\nRepeat: {words}<|EOT|><|BOT|>assistant\n"
    return Lesson(((f"{asked}<think>\n</think>\n", False), (f"{words}<|EOT|>", True)))

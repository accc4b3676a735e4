"""Which contents belong to training and which to evaluation."""

from __future__ import annotations

import hashlib
from typing import Literal

from step3.nano.scenes.draw import COLOURS, Number, Scene

Split = Literal["train", "eval"]

_EVAL_ONE_IN = 10


def split_of(key: str) -> Split:
    """The side on which a content falls, by a hash of what identifies it: one in ten is for evaluation."""
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return "eval" if int.from_bytes(digest, "big") % _EVAL_ONE_IN == 0 else "train"


def split_of_scene(scene: Scene) -> Split:
    """The side of a scene, by its things with size, colour, shape and cell, or by its number."""
    if scene.number is not None:
        return _split_of_number(scene.number)
    return split_of("; ".join(f"{t.size} {t.colour} {t.shape} {t.cell}" for t in scene.things))


def _split_of_number(number: Number) -> Split:
    """One number in ten, spread evenly over the digits of each place.

    Single digits are told apart by their colour as well, else no digit could be on both sides.
    """
    if len(number.text) == 1:
        place = int(number.text) + list(COLOURS).index(number.colour)
        return "eval" if place % len(COLOURS) == 3 else "train"
    weighted = sum(
        weight * int(digit) for weight, digit in zip((1, 3, 7), reversed(number.text), strict=False)
    )
    return "eval" if weighted % _EVAL_ONE_IN == 4 else "train"

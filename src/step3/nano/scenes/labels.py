"""A scene as numbers per cell, to train the vision tower directly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from step3.nano.scenes.draw import COLOURS, SHAPES, SIZES, Scene

COLOUR_IDS = {name: i for i, name in enumerate(COLOURS, 1)}
SHAPE_IDS = {name: i for i, name in enumerate(SHAPES, 1)}
SIZE_IDS = {name: i for i, name in enumerate(SIZES, 1)}
MOST_DIGITS = 3


@dataclass(frozen=True)
class CellLabels:
    """Ids per cell, int64 [grid, grid], rows top to bottom; 0 where no thing's centre falls.

    `digits` int64 [3]: the number's digits left to right, -1 after the last; `length` how many there
    are (0: no number); `ink` the id of the number's colour (0: no number).
    """

    shape: NDArray[np.int64]
    colour: NDArray[np.int64]
    size: NDArray[np.int64]
    digits: NDArray[np.int64]
    length: int
    ink: int


def cell_labels(scene: Scene, grid: int = 4) -> CellLabels:
    """The labels of `scene` on a `grid` x `grid` division of the picture (it was laid out on 3 x 3)."""
    shape, colour, size = (np.zeros((grid, grid), np.int64) for _ in range(3))
    for thing in scene.things:
        at = int(thing.y * grid), int(thing.x * grid)
        shape[at] = SHAPE_IDS[thing.shape]
        colour[at] = COLOUR_IDS[thing.colour]
        size[at] = SIZE_IDS[thing.size]
    digits = np.full(MOST_DIGITS, -1, np.int64)
    length = ink = 0
    if scene.number is not None:
        length = len(scene.number.text)
        digits[:length] = [int(digit) for digit in scene.number.text]
        ink = COLOUR_IDS[scene.number.colour]
    return CellLabels(shape, colour, size, digits, length, ink)

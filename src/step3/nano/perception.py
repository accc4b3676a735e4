"""Dense supervision of the vision tower: name what covers every patch, what is in every cell, every digit.

A language model's loss says little about a picture, a word or two; this says everything that is in it. The
same small matrices read all patches and all cells, so that what is learned in one place holds everywhere.
They are for training alone and are thrown away.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from step3.nano.scenes.draw import COLOURS, DIGITS, GRID, SHAPES, SIZES, Number, Scene
from step3.nano.scenes.labels import MOST_DIGITS

CELLS = GRID**2
# Classes of each label; nought is "nothing here". A glyph is a shape or a digit.
_GLYPH = {name: i for i, name in enumerate(SHAPES + DIGITS, 1)}
_COLOUR = {name: i for i, name in enumerate(COLOURS, 1)}
_SIZE = {name: i for i, name in enumerate(SIZES, 1)}
_IGNORED = -100
_GLYPHS, _COLOURS, _SIZES, _DIGITS = len(_GLYPH) + 1, len(_COLOUR) + 1, len(_SIZE) + 1, len(DIGITS) + 1


@dataclass(frozen=True)
class PictureLabels:
    """What is in a batch of pictures.

    Attributes:
        glyph, colour, size: `[pictures, 9]`, the thing in each cell; -100 where it is not to be learned.
        digits: `[pictures, 3]`, of a number, one more than the digit, from the left; 0 after the last.
        ink: `[pictures]`, the colour of the number.
        patch_glyph, patch_colour: `[pictures, patches]`, what covers each patch's centre.
    """

    glyph: Tensor
    colour: Tensor
    size: Tensor
    digits: Tensor
    ink: Tensor
    patch_glyph: Tensor
    patch_colour: Tensor


def picture_labels(scenes: list[Scene], patch_grid: int) -> PictureLabels:
    """The labels of `scenes`, for a tower with `patch_grid` x `patch_grid` patches."""
    cells = np.zeros((3, len(scenes), CELLS), np.int64)
    digits = np.zeros((len(scenes), MOST_DIGITS), np.int64)
    ink = np.zeros(len(scenes), np.int64)
    patches = np.zeros((2, len(scenes), patch_grid, patch_grid), np.int64)
    for i, scene in enumerate(scenes):
        for thing in scene.things:
            cells[:, i, thing.cell] = _GLYPH[thing.shape], _COLOUR[thing.colour], _SIZE[thing.size]
        if scene.number is not None:
            digits[i, : len(scene.number.text)] = [int(digit) + 1 for digit in scene.number.text]
            ink[i] = _COLOUR[scene.number.colour]
            _label_digits(scene.number, cells[:, i])
        patches[:, i] = _patch_labels(scene, patch_grid)
    whole = [torch.from_numpy(labels) for labels in (*cells, digits, ink)]
    return PictureLabels(*whole, *torch.from_numpy(patches).flatten(2))


def _label_digits(number: Number, cells: np.ndarray) -> None:
    """Names each digit in the cell of its centre, as in a crowd; a cell with two of them, and the sizes, are
    not learned."""
    for place, digit in enumerate(number.text):
        x = number.x + ((place + 0.5) / len(number.text) - 0.5) * number.width
        cell = int(number.y * GRID) * GRID + int(x * GRID)
        taken = cells[0, cell] != 0
        cells[:, cell] = (_IGNORED if taken else _GLYPH[digit]), _COLOUR[number.colour], _IGNORED


def _patch_labels(scene: Scene, grid: int) -> np.ndarray:
    """Glyph and colour `[2, grid, grid]`: a thing covers the disc around it, a digit its share of the
    number's box."""
    labels = np.zeros((2, grid, grid), np.int64)
    centres = (np.arange(grid) + 0.5) / grid
    across, down = centres[None, :], centres[:, None]
    for thing in scene.things:
        radius = thing.radius * min(scene.width, scene.height)
        covered = np.hypot((across - thing.x) * scene.width, (down - thing.y) * scene.height) <= radius
        labels[0][covered], labels[1][covered] = _GLYPH[thing.shape], _COLOUR[thing.colour]
    if scene.number is not None:
        number = scene.number
        share = np.broadcast_to((across - number.x) / number.width + 0.5, (grid, grid))
        covered = (np.abs(share - 0.5) < 0.5) & (np.abs(down - number.y) < _tall(number, scene) / 2)
        place = np.clip((share * len(number.text)).astype(int), 0, len(number.text) - 1)
        glyphs = np.array([_GLYPH[digit] for digit in number.text])[place]
        labels[0] = np.where(covered, glyphs, 0)
        labels[1][covered] = _COLOUR[number.colour]
    return labels


def _tall(number: Number, scene: Scene) -> float:
    """The number's height as a fraction of the picture's: a digit is about 1.4 times as tall as wide."""
    return number.width * scene.width / scene.height * number.stretch * 1.4 / len(number.text)


class PerceptionHead(nn.Module):
    """Reads the labels from the tower's rows and from the features behind it.

    Args:
        rows_size: channels of the tower's rows, one a patch.
        features, hidden_size: how many features a picture has, and their channels.
    """

    def __init__(self, rows_size: int, features: int, hidden_size: int) -> None:
        super().__init__()
        self.read_patch = nn.Linear(rows_size, _GLYPHS + _COLOURS)
        self.read_cell = nn.Linear(hidden_size, _GLYPHS + _COLOURS + _SIZES)
        self.read_number = nn.Linear(features * hidden_size, MOST_DIGITS * _DIGITS + _COLOURS)

    def loss(self, rows: Tensor, features: Tensor, labels: PictureLabels) -> tuple[Tensor, dict[str, float]]:
        """Cross entropy of a picture's labels, and the share of things and numbers read right.

        Args:
            rows: `[pictures, patches, rows_size]`, the tower's.
            features: `[pictures, 9, hidden_size]`, one a cell.
        """
        patch_glyph, patch_colour = self.read_patch(rows).split((_GLYPHS, _COLOURS), -1)
        glyph, colour, size = self.read_cell(features).split((_GLYPHS, _COLOURS, _SIZES), -1)
        digits, ink = self.read_number(features.flatten(1)).split((MOST_DIGITS * _DIGITS, _COLOURS), -1)
        digits = digits.unflatten(1, (MOST_DIGITS, _DIGITS))
        # Patches are many and alike: together they weigh as much as the cells.
        patch_weight = CELLS / rows.shape[1]
        loss = (
            _cross_entropy(glyph, labels.glyph)
            + _cross_entropy(colour, labels.colour)
            + _cross_entropy(size, labels.size)
            + _cross_entropy(digits, labels.digits)
            + _cross_entropy(ink, labels.ink)
            + patch_weight * _cross_entropy(patch_glyph, labels.patch_glyph)
            + patch_weight * _cross_entropy(patch_colour, labels.patch_colour)
        )
        right = glyph.argmax(-1) == labels.glyph
        is_digit = labels.glyph > len(SHAPES)
        shares = {
            "shape": _share(right, (labels.glyph > 0) & ~is_digit),
            "digit": _share(right, is_digit),
            "colour": _share(colour.argmax(-1) == labels.colour, labels.glyph > 0),
            "number": _share((digits.argmax(-1) == labels.digits).all(dim=1), labels.ink > 0),
        }
        return loss / len(features), shares


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")


def _share(right: Tensor, counted: Tensor) -> float:
    return right[counted].float().mean().item() if counted.any() else float("nan")

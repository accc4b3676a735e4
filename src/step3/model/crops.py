"""Where a picture is cut: the whole picture's size, the window, and the crops' places.

Pure arithmetic on widths and heights, so that the tokens of a picture can be counted from its header.
"""

from dataclasses import dataclass
from functools import cached_property

# Longer : shorter side from which a picture counts as thin, by what is decided.
PAD_RATIO = 4
SMALL_PICTURE_RATIO = 1.5
NARROW_WINDOW_RATIO = 4
# A last window is added only where more than this share of it is covered.
COVERED_SHARE = 0.2


@dataclass(frozen=True)
class CropRules:
    """The published thresholds, in pixels of the picture as it came.

    Args:
        pad_under: a thin picture whose shorter side is under this is padded to a square.
        max_side: a longer side over this is scaled down to it.
        crop_from: a picture whose longer side is under this is cut only if it is thin.
        window: side of the square that cuts out one crop.
    """

    pad_under: int = 32
    max_side: int = 3024
    crop_from: int = 728
    window: int = 504


@dataclass(frozen=True)
class CropPlan:
    """What to do with one picture; all sizes are (width, height) in pixels.

    Args:
        padded_size: the canvas the picture is laid on, at its top left corner.
        size: what the canvas is then scaled to; this is the whole picture.
        crop_size: what the whole picture is scaled to before it is cut; `size` where nothing is cut.
        window: side of a crop; 0 where nothing is cut.
        columns, rows: windows beside and below each other.
    """

    padded_size: tuple[int, int]
    size: tuple[int, int]
    crop_size: tuple[int, int]
    window: int
    columns: int
    rows: int

    @property
    def num_crops(self) -> int:
        """How many crops the picture gives."""
        return self.columns * self.rows

    @property
    def num_newlines(self) -> int:
        """How many crops end a row that is not the last."""
        return max(self.rows - 1, 0)

    @cached_property
    def corners(self) -> tuple[tuple[int, int], ...]:
        """The top left corner (x, y) of each crop, row by row."""
        return tuple(
            (column * self.window, row * self.window)
            for row in range(self.rows)
            for column in range(self.columns)
        )

    @cached_property
    def newline_mask(self) -> tuple[bool, ...]:
        """For each crop, whether it ends a row that is not the last."""
        return tuple(
            column == self.columns - 1 and row < self.rows - 1
            for row in range(self.rows)
            for column in range(self.columns)
        )

    def num_tokens(self, image_token_len: int, patch_token_len: int) -> int:
        """Tokens that the picture takes in a prompt, its start, end and newline tokens included."""
        return self.num_crops * (patch_token_len + 2) + self.num_newlines + image_token_len + 2


def plan_crops(width: int, height: int, rules: CropRules, crop: bool = True) -> CropPlan:
    """Decides how a picture of `width` × `height` pixels is padded, scaled and cut.

    Args:
        crop: False gives the whole picture only.
    """
    padded_size = _pad(width, height, rules)
    size = _fit(padded_size, rules.max_side)
    window = _window(size, rules) if crop else 0
    if not window:
        return CropPlan(padded_size, size, size, window=0, columns=0, rows=0)
    crop_width, crop_height = (_whole_windows(side, window) for side in size)
    return CropPlan(
        padded_size,
        size,
        (crop_width, crop_height),
        window,
        columns=max(crop_width // window, 1),
        rows=max(crop_height // window, 1),
    )


def _pad(width: int, height: int, rules: CropRules) -> tuple[int, int]:
    longer, shorter = max(width, height), min(width, height)
    if shorter < rules.pad_under and longer > PAD_RATIO * shorter:
        return longer, longer
    return width, height


def _fit(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    longer = max(size)
    if longer <= max_side:
        return size
    # In this order: the published code multiplies by a rounded quotient and cuts off, so that the longer
    # side itself can come out one pixel under max_side.
    scale = max_side / longer
    width, height = size
    return max(int(width * scale), 1), max(int(height * scale), 1)


def _window(size: tuple[int, int], rules: CropRules) -> int:
    longer, shorter = max(size), min(size)
    ratio = longer / shorter
    if longer < rules.crop_from:
        return shorter if ratio > SMALL_PICTURE_RATIO else 0
    return min(shorter, rules.window) if ratio > NARROW_WINDOW_RATIO else rules.window


def _whole_windows(side: int, window: int) -> int:
    """The side as a whole number of windows; a side under one window stays (the crop's rest is black)."""
    ratio = side / window
    if ratio < 1:
        return side
    # Floating point on purpose: at exactly 0.2 the published code goes by the rounded quotient
    # (6 / 5 gives one window, 11 / 5 gives three).
    return window * (int(ratio) + (ratio % 1 > COVERED_SHARE))

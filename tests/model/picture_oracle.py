"""Step3's treatment of a picture once more, written from its description alone and for clarity alone."""

import math

import numpy as np
from PIL import Image

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def padded_size(width: int, height: int) -> tuple[int, int]:
    """Shorter side under 32 and sides apart by more than 4 : 1: a square."""
    if min(width, height) < 32 and max(width, height) > 4 * min(width, height):
        return max(width, height), max(width, height)
    return width, height


def scaled_size(width: int, height: int) -> tuple[int, int]:
    """Longer side over 3024: both sides times 3024 / longer, cut off."""
    if max(width, height) <= 3024:
        return width, height
    factor = 3024 / max(width, height)
    return max(math.floor(width * factor), 1), max(math.floor(height * factor), 1)


def window_side(width: int, height: int) -> int | None:
    longer, shorter = sorted((width, height), reverse=True)
    if longer < 728:
        return shorter if longer / shorter > 1.5 else None
    if longer / shorter > 4:
        return min(shorter, 504)
    return 504


def whole_windows(side: int, window: int) -> int:
    """Under one window the side stays; a fraction over 0.2 counts as one more window."""
    quotient = side / window
    if quotient < 1:
        return side
    whole = math.floor(quotient)
    return window * (whole + 1 if quotient - whole > 0.2 else whole)


def crop_boxes(width: int, height: int, window: int) -> list[tuple[int, int, bool]]:
    """Left, top and whether the crop ends a row that is not the last."""
    boxes = []
    top = 0
    while top == 0 or top < height:
        left = 0
        while left == 0 or left < width:
            boxes.append((left, top, left + window >= width and top + window < height))
            left += window
        top += window
    return boxes


def views(picture: np.ndarray, picture_side: int = 728, crop_side: int = 504) -> tuple:
    """uint8 [height, width, 3] → whole view [3, side, side], crops [n, 3, side, side], newline mask [n]."""
    height, width = picture.shape[:2]
    canvas_width, canvas_height = padded_size(width, height)
    canvas = np.zeros((canvas_height, canvas_width, 3), np.uint8)
    canvas[:height, :width] = picture
    size = scaled_size(canvas_width, canvas_height)
    whole = resize_integers(canvas, size)
    window = window_side(*size)
    if window is None:
        return resize(normalise(whole), picture_side), np.zeros((0, 3, crop_side, crop_side)), []
    cut_from = resize_integers(whole, tuple(whole_windows(side, window) for side in size))
    crops, mask = [], []
    for left, top, ends_row in crop_boxes(cut_from.shape[1], cut_from.shape[0], window):
        crop = np.zeros((window, window, 3), np.uint8)
        part = cut_from[top : top + window, left : left + window]
        crop[: part.shape[0], : part.shape[1]] = part
        crops.append(resize(normalise(crop), crop_side))
        mask.append(ends_row)
    return resize(normalise(whole), picture_side), np.stack(crops), mask


def resize_integers(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


def normalise(picture: np.ndarray) -> np.ndarray:
    return ((picture / 255 - MEAN) / STD).transpose(2, 0, 1)


def resize(planes: np.ndarray, side: int) -> np.ndarray:
    """Bilinear with antialias: each output value is a mean under a triangle as wide as the shrinking."""
    rows, columns = triangle_weights(planes.shape[1], side), triangle_weights(planes.shape[2], side)
    return rows @ planes @ columns.T


def triangle_weights(length: int, side: int) -> np.ndarray:
    scale = length / side
    reach = max(scale, 1.0)
    centre = (np.arange(side)[:, None] + 0.5) * scale
    distance = np.abs(np.arange(length)[None] + 0.5 - centre) / reach
    weights = np.clip(1 - distance, 0, None)
    return weights / weights.sum(axis=1, keepdims=True)

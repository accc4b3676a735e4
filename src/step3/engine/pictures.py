"""Pictures: known by their content, encoded once, and put into the prompt wherever a chunk cuts it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from step3.engine.request import PlacedPicture, Sequence
from step3.engine.vision import VisionTower

if TYPE_CHECKING:
    from step3.model.image_processing_step3 import Step3ImageProcessor

CROPS_AT_ONCE = 8
"""Crops that go through the vision tower together; bounds its memory."""


def picture_digest(image: Image.Image) -> bytes:
    """SHA-256 of an upright RGB picture: mode and size are part of it, as equal bytes may differ in both."""
    head = f"{image.mode} {image.width} x {image.height}\n".encode()
    return hashlib.sha256(head + image.tobytes()).digest()


class PictureEncoder:
    """Features of pictures, kept for those who send the same again.

    Attributes:
        encoded, reused: pictures that went through the tower, and those that did not have to.
    """

    def __init__(self, tower: VisionTower, processor: Step3ImageProcessor, max_bytes: int) -> None:
        """`max_bytes` bounds the features that are kept, the least recently used going first."""
        self._tower, self._processor, self._max_bytes = tower, processor, max_bytes
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._kept_bytes = 0
        self.encoded = self.reused = 0

    def features(self, picture: PlacedPicture) -> Tensor:
        """`[features, hidden]` in the order of the picture's places: its crops' rows, then its own."""
        kept = self._kept.get(picture.digest)
        if kept is not None:
            self._kept.move_to_end(picture.digest)
            self.reused += 1
            return kept
        features = self._encode(picture.image)
        self.encoded += 1
        self._keep(picture.digest, features)
        return features

    def rows(self, sequence: Sequence, start: int, end: int) -> list[tuple[np.ndarray, Tensor]]:
        """What pictures put into the sequence's tokens from `start` to `end`.

        Returns:
            Positions `[n]`, counted from `start`, and features `[n, hidden]`, a pair for each picture.
        """
        found = []
        for number, picture in enumerate(sequence.request.pictures):
            first, last = np.searchsorted(picture.places, (start, end))
            if first == last:
                continue
            # Held until the whole picture is in the cache: what is kept for others may be dropped meanwhile.
            if number not in sequence.features:
                sequence.features[number] = self.features(picture)
            found.append((picture.places[first:last] - start, sequence.features[number][first:last]))
            if last == len(picture.places):
                del sequence.features[number]
        return found

    def _encode(self, image: Image.Image) -> Tensor:
        inputs = self._processor([image])
        rows = [self._tower.encode(crops).flatten(0, 1) for crops in _pieces(inputs["patch_pixel_values"])]
        return torch.cat([*rows, self._tower.encode(inputs["pixel_values"])[0]])

    def _keep(self, digest: bytes, features: Tensor) -> None:
        if features.nbytes > self._max_bytes:
            return
        self._kept[digest] = features
        self._kept_bytes += features.nbytes
        while self._kept_bytes > self._max_bytes:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes


def _pieces(crops: Tensor) -> tuple[Tensor, ...]:
    return crops.split(CROPS_AT_ONCE) if len(crops) else ()

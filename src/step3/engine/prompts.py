"""From what users give as a prompt to token ids and placed pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from step3.engine.network import VisionNetwork
from step3.engine.pictures import picture_digest
from step3.engine.request import PlacedPicture, RequestError
from step3.engine.tokens import Tokens

Prompt: TypeAlias = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, or a mapping with "prompt" or "prompt_token_ids", and perhaps "multi_modal_data"
(`{"image": one or a list}`) and "cache_salt"."""

_PROMPT_KEYS = {"prompt", "prompt_token_ids", "multi_modal_data", "cache_salt"}


@dataclass(frozen=True, eq=False)
class ReadPrompt:
    """A prompt as the engine takes it.

    Attributes:
        text: as it was given, None for token ids.
        ids: with the marks and places of the pictures.
        salt: requests with different salts share no cached prefixes.
    """

    text: str | None
    ids: list[int]
    pictures: tuple[PlacedPicture, ...]
    salt: bytes


class PromptReader:
    """Reads prompts for one model, and refuses those that it cannot take."""

    def __init__(
        self,
        tokens: Tokens,
        vision: VisionNetwork | None,
        vocabulary: int,
        max_model_len: int,
        max_pictures: int,
    ) -> None:
        """
        Args:
            vision: what the model sees with, if it does.
            vocabulary: ids go from 0 to below it.
            max_model_len: tokens of prompt and answer together; a prompt has to be shorter.
            max_pictures: of one prompt.
        """
        self._tokens, self._vision, self._vocabulary = tokens, vision, vocabulary
        self._max_model_len, self._max_pictures = max_model_len, max_pictures

    def read(self, prompt: Prompt, truncate: int | None) -> ReadPrompt:
        """Reads a prompt.

        Args:
            truncate: keep only the last so many tokens; -1 for as many as the model takes.

        Raises:
            RequestError: the prompt is malformed, empty, too long, or holds ids or pictures that the model
                does not know.
            PictureError: a picture cannot be read, or is too large.
        """
        given = _as_mapping(prompt)
        text, ids = self._ids(given)
        images = self._images(given)
        self._check_places(ids, images)
        pictures: tuple[PlacedPicture, ...] = ()
        if images and truncate is not None:
            raise RequestError("a prompt with pictures cannot be cut: leave truncate_prompt_tokens out")
        if images:
            ids, pictures = self._place(ids, images)
        elif truncate is not None:
            most = self._max_model_len - 1
            ids = ids[-(most if truncate == -1 else min(truncate, most)) :]
        self._check(ids)
        return ReadPrompt(text, ids, pictures, _salt(given.get("cache_salt")))

    def read_pictures(self, prompt: Prompt) -> Prompt:
        """The prompt with its pictures read, which may take a while; safe on any thread.

        Raises:
            RequestError: more pictures than allowed, or pictures for a model that cannot see.
            PictureError: one cannot be read, or is too large.
        """
        given = _as_mapping(prompt)
        images = self._images(given)
        if not images:
            return prompt
        return {**given, "multi_modal_data": {"image": [self._read(image) for image in images]}}

    def _ids(self, given: Mapping[str, Any]) -> tuple[str | None, list[int]]:
        text, ids = given.get("prompt"), given.get("prompt_token_ids")
        if ids is None and isinstance(text, str):
            # What is far too long need not be tokenized to be refused.
            if len(text) > self._tokens.table.longest * self._max_model_len:
                raise RequestError(
                    f"the prompt has {len(text):,} characters, more than {self._max_model_len:,} tokens can "
                    "hold: shorten it"
                )
            return text, self._tokens.encode(text)
        if ids is None:
            raise RequestError('a prompt must be text, token ids, or hold "prompt" or "prompt_token_ids"')
        if isinstance(ids, np.ndarray):
            ids = ids.tolist()
        if not isinstance(ids, list | tuple) or not all(type(token) is int for token in ids):
            raise RequestError("prompt_token_ids must be a list of whole numbers")
        return text if isinstance(text, str) else None, list(ids)

    def _images(self, given: Mapping[str, Any]) -> list[Any]:
        data = given.get("multi_modal_data") or {}
        if not isinstance(data, Mapping) or set(data) - {"image"}:
            raise RequestError('multi_modal_data must look like {"image": one picture or a list of them}')
        images = data.get("image")
        listed = list(images) if isinstance(images, list | tuple) else [] if images is None else [images]
        if listed and self._vision is None:
            raise RequestError("this checkpoint has no vision tower: leave the pictures out")
        if len(listed) > self._max_pictures:
            raise RequestError(
                f"the prompt has {len(listed)} pictures, {self._max_pictures} are allowed "
                "(limit_mm_per_prompt)"
            )
        return listed

    def _check_places(self, ids: list[int], images: list[Any]) -> None:
        if self._vision is None:
            return
        asked = ids.count(self._vision.image_token_id)
        if asked != len(images):
            raise RequestError(
                f"the prompt has {asked} <im_patch>, but {len(images)} pictures are given: write one for "
                "each picture, and none in text that is meant as text"
            )

    def _place(self, ids: list[int], images: list[Any]) -> tuple[list[int], tuple[PlacedPicture, ...]]:
        """Puts each picture's marks and places where the prompt has its `<im_patch>`."""
        vision, processor = self._vision, self._tokens.image_processor
        assert vision is not None, "only a model that sees is given pictures"
        assert processor is not None, "a checkpoint that sees has a processor"
        # Each picture has at least its own places: too many need not be read to be refused.
        self._check_length(len(ids) + len(images) * vision.image_token_len)
        expanded: list[int] = []
        placed: list[PlacedPicture] = []
        waiting = iter(images)
        for token in ids:
            if token != vision.image_token_id:
                expanded.append(token)
                continue
            image = self._read(next(waiting))
            plan = processor.plan(*image.size)
            self._check_length(
                len(expanded) + plan.num_tokens(vision.image_token_len, vision.patch_token_len)
            )
            start = len(expanded)
            expanded += self._marked(plan.newline_mask, vision)
            places = [i for i in range(start, len(expanded)) if expanded[i] == token]
            placed.append(PlacedPicture(picture_digest(image), image, np.array(places), start, len(expanded)))
        return expanded, tuple(placed)

    def _marked(self, newline_mask: Sequence[bool], vision: VisionNetwork) -> list[int]:
        """What a picture's `<im_patch>` becomes: its crops, those that end a row marked, then the whole."""
        marks, patch = self._tokens.marks, vision.image_token_id
        crop = [marks["<patch_start>"], *[patch] * vision.patch_token_len, marks["<patch_end>"]]
        tokens: list[int] = []
        for ends_row in newline_mask:
            tokens += [*crop, marks["<patch_newline>"]] if ends_row else crop
        return [*tokens, marks["<im_start>"], *[patch] * vision.image_token_len, marks["<im_end>"]]

    def _read(self, picture: Any) -> Image.Image:
        from step3.model.pictures import read_picture

        processor = self._tokens.image_processor
        assert processor is not None, "a checkpoint that sees has a processor"
        return read_picture(picture, processor.max_pixels)

    def _check(self, ids: list[int]) -> None:
        if not ids:
            raise RequestError("the prompt is empty: give at least one token")
        for token in (min(ids), max(ids)):
            if not 0 <= token < self._vocabulary:
                raise RequestError(
                    f"the prompt holds token {token}, but the vocabulary goes from 0 to "
                    f"{self._vocabulary - 1}"
                )
        self._check_length(len(ids))

    def _check_length(self, length: int) -> None:
        if length >= self._max_model_len:
            raise RequestError(
                f"the prompt has at least {length:,} tokens, but prompt and answer together can have "
                f"{self._max_model_len:,} (max_model_len): shorten it, or set truncate_prompt_tokens"
            )


def _as_mapping(prompt: Prompt) -> Mapping[str, Any]:
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if isinstance(prompt, Mapping):
        unknown = [name for name in prompt if name not in _PROMPT_KEYS]
        if unknown:
            raise RequestError(
                f"a prompt has no field {unknown[0]!r}: there are {', '.join(sorted(_PROMPT_KEYS))}"
            )
        return prompt
    return {"prompt_token_ids": prompt}


def _salt(given: Any) -> bytes:
    if given is None:
        return b""
    if not isinstance(given, str) or not given or len(given) > 1024:
        raise RequestError(f"cache_salt must be a text of 1 to 1024 characters, found {given!r:.100}")
    return given.encode("utf-8", "surrogatepass")

"""Requests and outputs as what msgpack can carry, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from PIL import Image

from step3.engine.detokenizer import TokenTable
from step3.engine.outputs import CompletionOutput, Logprob
from step3.engine.prompts import Prompt
from step3.engine.request import RequestError
from step3.engine.sampling.params import RequestOutputKind, SamplingParams
from step3.engine.sampling.structured_params import StructuredOutputsParams

_UNSENT = {"output_kind", "extra_args", "truncate_prompt_tokens"}


def pack_params(params: SamplingParams) -> dict[str, Any]:
    """All that differs from the defaults and matters to the engine."""
    default, packed = SamplingParams(), {}
    for one in fields(SamplingParams):
        value = getattr(params, one.name)
        if one.name in _UNSENT or value == getattr(default, one.name):
            continue
        if isinstance(value, StructuredOutputsParams):
            value = {
                part.name: getattr(value, part.name)
                for part in fields(value)
                if getattr(value, part.name) not in (None, False)
            }
        packed[one.name] = dict(value) if isinstance(value, Mapping) else value
    return packed


def unpack_params(packed: Mapping[str, Any]) -> SamplingParams:
    """Parameters whose outputs come as deltas.

    Raises:
        ParamsError: they are not parameters.
    """
    return SamplingParams.from_options({**packed, "output_kind": RequestOutputKind.DELTA})


def pack_picture(image: Image.Image) -> dict[str, Any]:
    """An upright RGB picture, pixel by pixel."""
    return {"width": image.width, "height": image.height, "rgb": image.tobytes()}


def unpack_prompt(packed: Mapping[str, Any]) -> Prompt:
    """What `Intake.request` takes.

    Raises:
        RequestError: a picture's bytes are not as many as its size says.
    """
    prompt: dict[str, Any] = {"prompt_token_ids": packed["tokens"]}
    if packed.get("salt"):
        prompt["cache_salt"] = packed["salt"]
    if packed.get("pictures"):
        prompt["multi_modal_data"] = {"image": [_picture(one) for one in packed["pictures"]]}
    return prompt


def _picture(packed: Mapping[str, Any]) -> Image.Image:
    width, height, rgb = packed["width"], packed["height"], packed["rgb"]
    if len(rgb) != width * height * 3:
        raise RequestError("a picture's bytes are not as many as its size says")
    return Image.fromarray(np.frombuffer(rgb, np.uint8).reshape(height, width, 3), "RGB")


PackedLogprobs = list[list[Any]]
"""`[token, log-probability, rank]` of the token itself and the likeliest ones, at one position."""


def pack_logprobs(table: Mapping[int, Logprob]) -> PackedLogprobs:
    return [[token, entry.logprob, entry.rank] for token, entry in table.items()]


def unpack_logprobs(packed: PackedLogprobs, table: TokenTable) -> dict[int, Logprob]:
    return {token: Logprob(logprob, rank, table.text(token)) for token, logprob, rank in packed}


def pack_answer(answer: CompletionOutput, tokens_known: int, characters_known: int) -> list[Any]:
    """What an answer has grown by, without what the other side knows already."""
    logprobs = answer.logprobs
    return [
        answer.index,
        answer.text[characters_known:],
        answer.token_ids[tokens_known:],
        None if logprobs is None else [pack_logprobs(one) for one in logprobs],
        answer.finish_reason,
        answer.stop_reason,
    ]

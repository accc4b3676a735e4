"""Requests and caches without a network, for tests of what schedules them; and the golden models."""

import json
from collections.abc import Sequence as Items
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from step3 import LLM, SamplingParams
from step3.engine.kv_cache import KVCache
from step3.engine.prefix_cache import PrefixCache
from step3.engine.progress import reveal
from step3.engine.request import PlacedPicture, Request, Sequence
from step3.engine.sampling.state import SamplingState

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
BLOCK = 4


def make_request(
    prompt: Items[int],
    number: int = 0,
    *,
    priority: int = 0,
    salt: bytes = b"",
    pictures: tuple[PlacedPicture, ...] = (),
    output: Items[int] = (),
    params: SamplingParams | None = None,
) -> Request:
    """A request as the intake makes it, without text."""
    params = params or SamplingParams(temperature=0)
    request = Request(
        id=str(number),
        number=number,
        prompt=None,
        prompt_token_ids=list(prompt),
        params=params,
        pictures=pictures,
        priority=priority,
        salt=salt,
    )
    for choice in range(params.n):
        state = SamplingState(params, seed=0, choice=choice, vocab_size=512)
        tokens = [*prompt, *output]
        request.sequences.append(Sequence(request, choice, tokens, state, None, None))
    return request


def make_sequence(prompt: Items[int], number: int = 0, **options: Any) -> Sequence:
    return make_request(prompt, number, **options).sequences[0]


def make_cache(num_blocks: int, prefix_caching: bool = True) -> KVCache:
    return KVCache(num_blocks, BLOCK, PrefixCache(BLOCK, b"key") if prefix_caching else None)


def make_picture(digest: bytes, start: int, end: int) -> PlacedPicture:
    return PlacedPicture(digest, Image.new("RGB", (2, 2)), np.arange(start + 1, end - 1), start, end)


def golden_cases(checkpoint: str) -> list[dict[str, Any]]:
    return json.loads((GOLDEN / checkpoint / "golden.json").read_text())["cases"]


def golden_picture(width: int, height: int, seed: int) -> Image.Image:
    """The picture that a golden case was computed with."""
    y, x = np.mgrid[0:height, 0:width]
    checks = ((x // (17 + seed) + y // (13 + seed)) % 2) * 255
    channels = (x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), checks)
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8), "RGB")


def golden_prompt(case: dict[str, Any]) -> dict[str, Any]:
    """A golden case as `LLM.generate` takes it."""
    if "prompt" not in case:
        return {"prompt_token_ids": case["prompt_token_ids"]}
    sizes = zip(case["images"], case["picture_seeds"], strict=True)
    pictures = [golden_picture(*size, seed) for size, seed in sizes]
    return {"prompt": case["prompt"], "multi_modal_data": {"image": pictures}}


def make_llm(checkpoint: str, **options: Any) -> LLM:
    """A golden model in float32."""
    defaults = {"dtype": "float32", "max_model_len": 1024, "max_num_seqs": 16}
    return LLM(str(GOLDEN / checkpoint), quiet=True, **{**defaults, **options})


@cache
def shared_llm(checkpoint: str) -> LLM:
    """A golden model with default options, for tests that leave nothing behind but cached prefixes."""
    return make_llm(checkpoint)


def text_of(sequence: Sequence) -> str:
    """What may be shown of an answer."""
    return "".join(reveal(sequence))

"""Prompts of so many tokens, for a server whose tokenizer nobody knows here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from step3.bench.errors import BenchError
from step3.bench.stream import Endpoint, stream

# Common words, which most tokenizers know as one token each.
_WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life",
    "child", "world", "school", "state", "family", "student", "group", "country", "problem",
    "hand", "part", "place", "case", "week", "company", "system", "program", "question",
    "work", "government", "number", "night", "point", "home", "water", "room", "mother",
    "area", "money", "story", "fact", "month", "lot", "right", "study", "book",
    "eye", "job", "word", "business", "issue", "side", "kind", "head", "house",
    "service", "friend", "father", "power", "hour", "game", "line", "end", "member",
    "law", "car", "city",
)  # fmt: skip
_PROBES = (16, 144)
"""Words of the two prompts that show how many tokens a word takes."""


@dataclass(frozen=True)
class Asking:
    """How requests are worded: which model and interface, and what goes into each."""

    model: str
    is_chat: bool
    ignore_eos: bool
    params: Mapping[str, Any]
    tokens_per_word: float = 1.0
    overhead: float = 0.0
    """Tokens of a prompt without words: the template's."""

    def body(self, prompt_tokens: int, output_tokens: int, rng: Random) -> dict[str, Any]:
        """A request with a prompt of about `prompt_tokens` and an answer of at most `output_tokens`."""
        words = max(1, round((prompt_tokens - self.overhead) / self.tokens_per_word))
        return self.worded(words, output_tokens, rng)

    def worded(self, words: int, output_tokens: int, rng: Random) -> dict[str, Any]:
        """A request with so many random words: no two begin alike, so that no prefix cache helps."""
        text = " ".join(rng.choices(_WORDS, k=words))
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.params,
        }
        body.update({"messages": [{"role": "user", "content": text}]} if self.is_chat else {"prompt": text})
        if self.ignore_eos:
            body["ignore_eos"] = True
        return body


async def fitted(asking: Asking, endpoint: Endpoint, timeout: float, rng: Random) -> Asking:
    """The same, with its prompts' lengths fitted to the server's tokenizer by two short requests.

    Raises:
        BenchError: the server does not answer them.
    """
    counts = []
    for words in _PROBES:
        sample = await stream(endpoint, asking.worded(words, 1, rng), timeout)
        if sample.error is not None:
            hint = "; --no-ignore-eos leaves the field out" if "ignore_eos" in sample.error else ""
            raise BenchError(f"the server does not take a first request: {sample.error}{hint}")
        counts.append(sample.prompt_tokens)
    first, second = counts
    if first is None or second is None or second <= first:
        # Without usage there is nothing to fit: a word is taken for a token.
        return asking
    slope = (second - first) / (_PROBES[1] - _PROBES[0])
    return Asking(
        asking.model,
        asking.is_chat,
        asking.ignore_eos,
        asking.params,
        tokens_per_word=slope,
        overhead=first - slope * _PROBES[0],
    )

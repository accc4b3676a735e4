"""The tools that training prompts offer: names, parameters, ways to ask, and values to ask for.

They are data: `nano/assets/toolbox.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from random import Random
from typing import Any

_MADE_UP = ("city", "person", "word", "company", "movie", "song")
# The pool of values that nobody can know and that must be copied, and how many of its words are made up.
STRANGE = "strange"
_SHARE_OF_MADE_UP = 0.5
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


@dataclass(frozen=True)
class Parameter:
    """A parameter: the names it may go by, and what fills it (a pool of values, options or a range)."""

    names: tuple[str, ...]
    pool: str = ""
    options: tuple[str, ...] = ()
    range: tuple[int, int] = (0, 0)

    def schema(self) -> dict[str, object]:
        """Its JSON schema."""
        if self.options:
            return {"type": "string", "enum": list(self.options)}
        return {"type": "string" if self.pool else "integer"}

    def draw(self, rng: Random) -> str:
        """A value, as text."""
        if self.options:
            return rng.choice(self.options)
        if self.pool:
            return draw_value(rng, self.pool)
        return str(rng.randint(*self.range))


@dataclass(frozen=True)
class Tool:
    """A tool: names it may go by, descriptions, parameters, and ways to ask (`{0}`, `{1}` are values).

    `held_out_asks` are for evaluation only.
    """

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    asks: tuple[str, ...]
    held_out_asks: tuple[str, ...]


def _load() -> tuple[dict[str, tuple[str, ...]], tuple[Tool, ...]]:
    data = json.loads((resources.files("step3.nano") / "assets" / "toolbox.json").read_text(encoding="utf-8"))
    tools = (
        Tool(**_tuples(tool | {"parameters": [Parameter(**_tuples(p)) for p in tool["parameters"]]}))
        for tool in data["tools"]
    )
    return _tuples(data["values"]), tuple(tools)


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


VALUES, TOOLS = _load()
_WORDS = tuple(sorted({word for pool in VALUES.values() for value in pool for word in value.split()}))


def draw_value(rng: Random, pool: str) -> str:
    """A value from a pool; for names, now and then a made-up one, so that copying is learned, not a list."""
    if pool == STRANGE:
        return " ".join(draw_strange(rng) for _ in range(rng.choice((1, 1, 1, 2, 3))))
    if pool not in _MADE_UP or rng.random() >= 0.3:
        return rng.choice(VALUES[pool])
    made = _make_up(rng)
    return made if pool == "word" else made.capitalize()


def _make_up(rng: Random) -> str:
    made = "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.randint(2, 3)))
    return made + rng.choice(("", "n", "r", "s"))


def draw_strange(rng: Random) -> str:
    """A word that means nothing where it stands: made up, a number, or any value's."""
    chance = rng.random()
    if chance < 0.15:
        return str(rng.randint(0, 999))
    if chance < 0.15 + _SHARE_OF_MADE_UP:
        made = _make_up(rng)
        return made.capitalize() if rng.random() < 0.5 else made
    return rng.choice(_WORDS)

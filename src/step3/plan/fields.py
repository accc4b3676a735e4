"""Reading values out of untrusted mappings (config.json, YAML): each typed, bounded and named when wrong."""

import math
from collections.abc import Mapping
from typing import Any

from step3.errors import Step3Error

MAX_SIZE = 10**9
"""Larger than any size of a model; keeps a hostile file from costing time or memory."""


class Fields:
    """A mapping whose values are read with a type, and which says what is wrong in its owner's words.

    Args:
        values: the mapping.
        owner: what it describes, the start of every message.
        error: the error class to raise.
    """

    def __init__(self, values: Any, owner: str, error: type[Step3Error]) -> None:
        if not isinstance(values, Mapping):
            raise error(f"{owner}: expected a mapping of names to values, found {type(values).__name__}")
        self.values = values
        self.owner = owner
        self.error = error

    def fail(self, message: str) -> Step3Error:
        """The error to raise for `message`."""
        return self.error(f"{self.owner}: {message}")

    def has(self, name: str) -> bool:
        """Whether the value is there and not null."""
        return self.values.get(name) is not None

    def first(self, *names: str) -> str:
        """The first of these names that is there.

        Raises:
            Step3Error: none is.
        """
        for name in names:
            if self.has(name):
                return name
        raise self.fail(f"{' or '.join(names)} is missing")

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number from `least` to `MAX_SIZE`."""
        if not self.has(name):
            if default is None:
                raise self.fail(f"{name} is missing")
            return default
        value = self.values[name]
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_SIZE:
            raise self.fail(f"{name} must be a whole number from {least} to {MAX_SIZE}, not {value!r:.60}")
        return value

    def number(self, name: str, default: float | None = None, least: float = 0.0) -> float:
        """A finite number of at least `least`."""
        if not self.has(name):
            if default is None:
                raise self.fail(f"{name} is missing")
            return default
        return self.as_number(name, self.values[name], least)

    def as_number(self, name: str, value: Any, least: float = 0.0) -> float:
        """`value` as a finite number of at least `least`; YAML reads 2e12 as text, which is taken too."""
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not (math.isfinite(number) and number >= least):
            raise self.fail(f"{name} must be a number of at least {least:g}, not {value!r:.60}")
        return number

    def flag(self, name: str, default: bool) -> bool:
        """A boolean."""
        value = self.values.get(name, default)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(f"{name} must be true or false, not {value!r:.60}")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string of at most 1,000 characters."""
        value = self.values.get(name, default)
        if not isinstance(value, str) or len(value) > 1000:
            missing = value is None
            raise self.fail(f"{name} is missing" if missing else f"{name} must be a short text")
        return value

    def items(self, name: str, length: int | None = None) -> list[Any]:
        """A list, of `length` entries at least if that is given."""
        value = self.values.get(name)
        if not isinstance(value, list) or len(value) > MAX_SIZE:
            raise self.fail(f"{name} must be a list, not {value!r:.60}")
        if length is not None and len(value) < length:
            raise self.fail(f"{name} has {len(value)} entries for {length} layers")
        return value

    def inner(self, name: str) -> "Fields":
        """The mapping under `name`."""
        if not self.has(name):
            raise self.fail(f"{name} is missing")
        return Fields(self.values[name], f"{self.owner}, {name}", self.error)

"""Checks of single fields that come from outside: each returns the value in its one form, or raises."""

import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from step3.engine.sampling.errors import ParamsError


def shown(value: Any) -> str:
    """A value as error messages quote it: never long."""
    if isinstance(value, str | list | tuple | dict) and len(value) > 1000:
        return f"{type(value).__name__} of length {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"


def whole(name: str, value: Any, low: int, high: int, mend: str = "") -> int:
    """An int in [low, high]; True and False are no numbers."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ParamsError(f"{name} must be a whole number, found {shown(value)}{_and(mend)}")
    if not low <= int(value) <= high:
        raise ParamsError(f"{name} must be from {low} to {high}, found {_number(value)}{_and(mend)}")
    return int(value)


def real(name: str, value: Any, low: float, high: float, *, above_low: bool = False, mend: str = "") -> float:
    """A finite float in [low, high], or in (low, high] with `above_low`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ParamsError(f"{name} must be a number, found {shown(value)}{_and(mend)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not low <= number <= high or (above_low and number == low):
        bounds = f"above {low:g} and at most {high:g}" if above_low else f"from {low:g} to {high:g}"
        raise ParamsError(f"{name} must be {bounds}, found {_number(value)}{_and(mend)}")
    return number


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ParamsError(f"{name} must be True or False, found {shown(value)}")
    return value


def texts(name: str, value: Any, most: int, longest: int) -> tuple[str, ...]:
    """Different non-empty strings, from one string, a sequence of them, or None."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = (value,)
    for text in _items(name, value, most, "strings"):
        if not isinstance(text, str):
            raise ParamsError(f"{name} must hold strings, found {shown(text)}")
        if not text:
            raise ParamsError(f"{name} holds an empty string, found {shown(value)}: leave it out")
        if len(text) > longest:
            raise ParamsError(
                f"{name} holds a string of {len(text)} characters, at most {longest} are allowed"
            )
    return tuple(dict.fromkeys(value))


def token_ids(name: str, value: Any, most: int) -> tuple[int, ...]:
    """Different token ids in their order, from a sequence or None."""
    if value is None:
        return ()
    ids = (
        whole(f"{name}[{place}]", one, 0, 2**31 - 1) for place, one in enumerate(_items(name, value, most))
    )
    return tuple(dict.fromkeys(ids))


def biases(name: str, value: Any, most: int) -> dict[int, float] | None:
    """Token id to added logit; ids may be written as strings, as JSON must."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ParamsError(f"{name} must map token ids to numbers, found {shown(value)}")
    if len(value) > most:
        raise ParamsError(f"{name} holds {len(value)} entries, at most {most} are allowed")
    checked = {}
    for key, bias in value.items():
        written = isinstance(key, str) and len(key) <= 10 and key.isascii() and key.isdigit()
        token_id = whole(f"a key of {name}", int(key) if written else key, 0, 2**31 - 1)
        checked[token_id] = real(f"{name}[{token_id}]", bias, -1e6, 1e6, mend="-100 bans a token")
    return checked


def _items(name: str, value: Any, most: int, kind: str = "token ids") -> Iterable[Any]:
    if not isinstance(value, list | tuple | set | frozenset):
        raise ParamsError(f"{name} must be a list of {kind}, found {shown(value)}")
    if len(value) > most:
        raise ParamsError(f"{name} holds {len(value)} {kind}, at most {most} are allowed")
    return value


def _number(value: Any) -> str:
    return shown(value) if not isinstance(value, int) or abs(value) < 10**20 else "a number of over 20 digits"


def _and(mend: str) -> str:
    return f": {mend}" if mend else ""

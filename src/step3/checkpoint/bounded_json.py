"""Reads a JSON object from a file or from bytes that nobody vouches for."""

import json
from pathlib import Path
from typing import Any

from step3.checkpoint.errors import CheckpointError


def parse_object(data: bytes, source: Path) -> dict[str, Any]:
    """The JSON object in `data`; `source` is the file that an error names.

    Raises:
        CheckpointError: not UTF-8, not JSON, not an object, nested too deeply, or a key written twice
            (two readers could then see two different checkpoints).
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise CheckpointError(f"{source}: the JSON key {twice!r} is written twice")
        return table

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: expected a JSON object, found {type(value).__name__}")
    return value


def read_object(path: Path, limit: int) -> dict[str, Any]:
    """The JSON object in the file `path`, which may have at most `limit` bytes.

    Raises:
        CheckpointError: no such regular file, more than `limit` bytes, or what `parse_object` refuses.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise CheckpointError(f"{path}: larger than {limit} bytes, which no checkpoint needs here")
    return parse_object(data, path)

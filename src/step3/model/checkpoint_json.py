"""The JSON files of a checkpoint, from a folder or from the hub."""

import json
import os
from collections.abc import Mapping
from typing import Any

from transformers.utils import cached_file

from step3.errors import Step3Error

# What `from_pretrained` takes to find files.
HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def read_json(folder: str | os.PathLike[str], name: str, **hub: Any) -> Mapping[str, Any]:
    """The object in one file; empty where there is no such file.

    Args:
        folder: a local folder, or the name of a repository on the hub.
        hub: some of `HUB_KWARGS`.

    Raises:
        Step3Error: the file cannot be read or holds no JSON object.
    """
    path = cached_file(folder, name, _raise_exceptions_for_missing_entries=False, **hub)
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            fields = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise Step3Error(f"cannot read {path}: {error}") from None
    if not isinstance(fields, dict):
        raise Step3Error(f"{path} must hold a JSON object, found {type(fields).__name__}")
    return fields

"""Catalogue files: the packaged YAML and the user's, read safely."""

from importlib import resources
from pathlib import Path

import yaml

from step3.errors import Step3Error
from step3.plan.fields import Fields

MAX_YAML_BYTES = 1 << 20


def packaged(name: str) -> Path:
    """A data file of this package."""
    return Path(str(resources.files("step3.plan") / "data" / name))


def read_small(path: Path, most: int, error: type[Step3Error]) -> bytes:
    """A file of at most `most` bytes.

    Raises:
        Step3Error: of class `error`: it cannot be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}") from problem
    if len(content) > most:
        raise error(f"{path} is larger than {most >> 20} MiB, more than such a file can need")
    return content


def load_yaml(path: Path, error: type[Step3Error]) -> Fields:
    """The mapping in a YAML file of at most 1 MiB.

    Raises:
        Step3Error: of class `error`: it cannot be read, is too large, or is no mapping.
    """
    content = read_small(path, MAX_YAML_BYTES, error)
    if b"*" in content and b"&" in content:
        raise error(f"{path} uses YAML anchors, which a catalogue may not: write the values out")
    try:
        values = yaml.safe_load(content)
    except (yaml.YAMLError, RecursionError, ValueError) as problem:
        line = getattr(getattr(problem, "problem_mark", None), "line", None)
        where = f" at line {line + 1}" if line is not None else ""
        raise error(f"{path} is not YAML{where}") from problem
    return Fields(values, str(path), error)

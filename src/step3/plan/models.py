"""Models by name: the packaged catalogue, or any `config.json`."""

from dataclasses import replace
from functools import cache
from pathlib import Path

from step3.plan.catalogue import load_yaml, packaged
from step3.plan.config import read_config, shape_from_config
from step3.plan.errors import ModelError
from step3.plan.precision import Precision
from step3.plan.shape import ModelShape


@cache
def _models() -> dict[str, ModelShape]:
    shapes: dict[str, ModelShape] = {}
    entries = load_yaml(packaged("models.yaml"), ModelError)
    for name in entries.values:
        entry = entries.inner(name)
        shapes[name] = replace(
            shape_from_config(entry.inner("config").values, name, f"catalogue, {name}"),
            precision=Precision(**entry.inner("precision").values),
            stated_active_billions=entry.number("stated_active_billions", 0.0) or None,
        )
    return shapes


@cache
def _aliases() -> dict[str, str]:
    entries = load_yaml(packaged("models.yaml"), ModelError)
    names = {name.lower(): name for name in entries.values}
    for name in entries.values:
        names.update({alias.lower(): name for alias in entries.inner(name).items("aliases")})
    return names


def model_names() -> list[str]:
    """The models that can be named."""
    return list(_models())


def find_model(name: str, weights: str | None = None) -> ModelShape:
    """A model by its name in the catalogue, or by the path of a `config.json` or a checkpoint's folder.

    Raises:
        ModelError: neither is known, or the config is wrong.
    """
    known = _aliases().get(name.strip().lower())
    if known is not None:
        model = _models()[known]
        if weights is None:
            return model
        return replace(
            model, precision=replace(model.precision, attention_weights=weights, ffn_weights=weights)
        )
    path = Path(name)
    if path.exists():
        return read_config(path, weights)
    raise ModelError(
        f"model {name[:80]!r} is neither in the catalogue ({', '.join(model_names())}) "
        "nor the path of a config.json"
    )

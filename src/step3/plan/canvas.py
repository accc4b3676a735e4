"""Drawing that looks the same everywhere: one style, every figure as PNG and SVG."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from step3.plan.errors import PlanError

COLOURS = ("#0b6e99", "#d9822b", "#4f9d69", "#8e4585", "#c23b22", "#6b7280", "#b8a000", "#2f4b7c", "#a05195")
"""Distinguishable also in print and for colour-blind readers, with the markers below."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")

INK = "#22272e"

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e6ea",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "svg.hashsalt": "step3",
}


@contextmanager
def drawing(
    width: float, height: float, columns: int = 1, share_y: bool = False
) -> Iterator[tuple[Any, Any]]:
    """A figure of so many inches and its axes (an array if there are several), in the common style.

    Raises:
        PlanError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise PlanError("plots need matplotlib: pip install 'step3[plots]'") from None
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(1, columns, sharey=share_y)


def save(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write `name`.png and `name`.svg into `folder`, which is made if need be.

    Raises:
        PlanError: the folder cannot be written to.
    """
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(paths[0], dpi=170)
        figure.savefig(paths[1], metadata={"Date": None})
    except OSError as error:
        raise PlanError(f"plots cannot be written to {folder}: {error.strerror}") from error
    return paths

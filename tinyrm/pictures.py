"""The style that the pictures of training and evaluation share. Needs the extra `evaluation`, for matplotlib."""

from pathlib import Path
from typing import Final

from matplotlib import rc_context
from matplotlib.figure import Figure

from tinyrm.errors import InvalidInput

OURS, OTHERS = "tab:blue", "0.45"
# One for each of several models or runs, in order.
COLOURS: Final = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:cyan")
DPI: Final = 120
SUFFIXES: Final = (".png", ".svg")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, whose parts leave each other room."""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """Write a PNG or an SVG, the same bytes for the same figure. Raises InvalidInput for another format."""
    if path.suffix not in SUFFIXES:
        raise InvalidInput(f"{path}: a picture is {' or '.join(SUFFIXES)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "tinyrm"}):
        figure.savefig(path, dpi=DPI, metadata={"Date": None} if path.suffix == ".svg" else None)

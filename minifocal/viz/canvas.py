"""What all pictures share: colours, an empty figure that needs no screen, and the file."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minifocal.errors import InputError
from minifocal.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
SIGNED, POSITIVE = "RdBu_r", "viridis"  # colour maps, legible to colour-blind readers: around zero, and from zero up

# What would differ from one drawing to the next is left out, so that the same picture has the same bytes.
FORMATS: dict[str, dict[str, Any]] = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}


def new_figure(width: float, height: float) -> "Figure":
    """Make an empty figure.

    Args:
        width, height: in inches; the README shows about 8.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=None, dpi=120)
    FigureCanvasAgg(figure)
    return figure


def colour_table(name: str, count: int) -> np.ndarray:
    """Give colours of one of Matplotlib's colour maps, for pages that paint by themselves.

    Args:
        name: SIGNED, POSITIVE or another. count: how many, at least 2: equally far from each other.
    Returns:
        (count, 3), uint8: red, green and blue, of the lowest value first.
    """
    from matplotlib import colormaps

    return np.asarray(colormaps[name](np.linspace(0, 1, count), bytes=True))[:, :3]


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Give an image as it is looked at.

    Args:
        pixels: (C, H, W) from 0 to 1: three channels are colours, others are averaged to grey; what lies beyond is cut.
    Returns:
        (H, W, 3), float64.
    """
    channels = pixels.astype(np.float64)
    if len(channels) != 3:
        channels = np.broadcast_to(channels.mean(axis=0), (3, *channels.shape[1:]))
    return np.clip(np.moveaxis(channels, 0, -1), 0, 1)


def check_picture_path(path: Path) -> None:
    """Refuse a file name that is of no picture, before long work is done for it.

    Raises:
        InputError: it ends neither in .png nor in .svg.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"a picture is a {' or '.join(FORMATS)} file, got {path.name!r}; name it so")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG or SVG file, by its name; the same figure gives the same bytes.

    Raises:
        InputError: another kind of file, or it cannot be written.
    """
    check_picture_path(path)
    kind = path.suffix.lower()
    buffer = io.BytesIO()
    with _fixed_ids():
        figure.savefig(buffer, format=kind[1:], metadata=FORMATS[kind])
    write_bytes(path, buffer.getvalue())


@contextmanager
def _fixed_ids() -> Iterator[None]:
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "minifocal"}):
        yield

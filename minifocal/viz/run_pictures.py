"""Pictures of a watched training: its gates by epoch, and receptive fields on paper, before and after it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minifocal.viz.canvas import BLUE, GREEN, GREY, ORANGE, POSITIVE, PURPLE, SIGNED, new_figure, save_figure
from minifocal.viz.fields import level_names, receptive_widths
from minifocal.viz.watched_run import SHOWN, WatchedRun, watched_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVEL_COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
LABELS = {"gate 3 × 3": "gate 3 × 3", "modulator": "|modulator|"}
SMALLEST_SHARE = 1e-5  # where the colours of receptive fields begin


def draw_gates(run: WatchedRun, path: Path) -> None:
    """Draw the maps of each watched image by epoch; each row has one scale.

    Args:
        run: the record. path: of the PNG or SVG file.
    Raises:
        InputError: the file cannot be written.
    """
    rows, columns = len(run.images) * len(SHOWN), len(run.epochs)
    height = 1.12 * rows + 0.75
    figure = new_figure(8.5, height)
    widths = {"left": 0.01, "right": 0.945, "top": 1 - 0.62 / height, "bottom": 0.015, "wspace": 0.07, "hspace": 0.07}
    grid = figure.add_gridspec(rows, columns + 3, width_ratios=[1, 0.1, *[1] * columns, 0.09], **widths)
    for number, picture in enumerate(watched_images(run.size, run.images)):
        first = number * len(SHOWN)
        axes = _empty(figure.add_subplot(grid[first : first + len(SHOWN), 0]))
        axes.imshow(picture)
        for row, name in enumerate(SHOWN, start=first):
            maps = run.maps[name][number]
            drawn = [_empty(figure.add_subplot(grid[row, column + 2])) for column in range(columns)]
            colours = _scale(maps)
            for axes, values, epoch in zip(drawn, maps, run.epochs, strict=True):
                image = axes.imshow(values, **colours)
                if row == 0:
                    axes.set_title(f"epoch {epoch}" if epoch else "untrained", fontsize=8.5)
            drawn[0].set_ylabel(LABELS[name], fontsize=8.5)
            bar = figure.colorbar(image, cax=figure.add_subplot(grid[row, -1]))
            bar.ax.tick_params(labelsize=8, pad=1.5, length=2)
            bar.locator = _few_ticks()
            bar.update_ticks()
    heading = (
        f"{run.block}, trained on shapes of {run.size} × {run.size} pixels "
        f"({100 * run.accuracy:.1f} % of the test images right); one scale for each row"
    )
    figure.suptitle(heading, fontsize=9.5, y=1 - 0.12 / height, va="top")
    save_figure(figure, path)


def _scale(maps: np.ndarray) -> dict[str, Any]:
    """One scale for all maps of a row: around zero where there are signs, else from zero."""
    largest = float(np.abs(maps).max()) or 1.0
    signed = bool((maps < 0).any())
    return {"cmap": SIGNED if signed else POSITIVE, "vmin": -largest if signed else 0.0, "vmax": largest}


def draw_fields(run: WatchedRun, path: Path) -> None:
    """Draw whom the tokens of each level depend on: on paper, and measured before and after training.

    Args:
        run: the record. path: of the PNG or SVG file.
    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.colors import LogNorm

    names = level_names(run.kernels)
    widths = [*receptive_widths(run.kernels), None, None]
    figure = new_figure(8.5, 4.6)
    grid = figure.add_gridspec(
        2, len(names) + 3, width_ratios=[1, 0.08, *[1] * len(names), 0.06], left=0.065, right=0.925, top=0.87,
        bottom=0.125, wspace=0.13, hspace=0.34,
    )  # fmt: skip
    _draw_paper(figure.add_subplot(grid[0, 0]), run)
    _draw_reach(figure.add_subplot(grid[1, 0]), run)
    norm = LogNorm(SMALLEST_SHARE, max(float(found.max()) for found in run.fields.values()))
    for row, (when, fields) in enumerate(run.fields.items()):
        for column, (name, field, width) in enumerate(zip(names, fields, widths, strict=True)):
            axes = _empty(figure.add_subplot(grid[row, column + 2]))
            seen = np.where(field > 0, np.maximum(field, SMALLEST_SHARE), np.nan)
            drawn = axes.imshow(seen, cmap=POSITIVE, norm=norm)
            if width is not None:
                _outline(axes, run.token, width, LEVEL_COLOURS[column % len(LEVEL_COLOURS)])
            if row == 0:
                axes.set_title(name, fontsize=9, color=LEVEL_COLOURS[column % len(LEVEL_COLOURS)])
            if column == 0:
                axes.set_ylabel(f"{when} training", fontsize=9)
            own, near = 100 * field[run.token], 100 * _within(field, run.token, 3)
            axes.set_xlabel(f"itself: {own:.2g} %\n3 × 3: {near:.3g} %", fontsize=8.5)
    bar = figure.colorbar(drawn, cax=figure.add_subplot(grid[:, -1]))
    bar.set_label("share of the whole gradient (white: exactly 0)", fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    H, W = run.fields["before"].shape[1:]
    figure.suptitle(
        f"Whom the token in the middle of {H} × {W} depends on in the first block: |gradient| by patches of the image",
        fontsize=9.5,
        y=0.985,
    )
    save_figure(figure, path)


def _draw_paper(axes: "Axes", run: WatchedRun) -> None:
    """The squares that kernels in a chain can reach."""
    H, W = run.fields["before"].shape[1:]
    axes.set_xlim(-0.5, W - 0.5)
    axes.set_ylim(H - 0.5, -0.5)
    axes.set_aspect("equal")
    _empty(axes)
    row, column = run.token
    axes.plot(column, row, "s", ms=3, color=GREY)
    for width, colour in zip(receptive_widths(run.kernels), LEVEL_COLOURS, strict=False):
        _outline(axes, run.token, width, colour)
        label: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 8, "color": colour}
        axes.text(column, row - width / 2 - 0.3, f"{width} × {width}", **label)
    axes.set_title("on paper", fontsize=9)
    axes.set_xlabel("1 + Σ (k − 1)", fontsize=8.5)


def _draw_reach(axes: "Axes", run: WatchedRun) -> None:
    """How much of the gradient lies within a square around the token, by the side of the square."""
    sides = np.arange(1, 2 * min(run.token) + 2, 2)
    names = level_names(run.kernels)
    for position, colour in zip(range(len(names)), LEVEL_COLOURS, strict=False):
        for when, style in (("before", ":"), ("after", "-")):
            shares = [100 * _within(run.fields[when][position], run.token, side) for side in sides.tolist()]
            axes.plot(sides, shares, style, color=colour, lw=1.2)
    axes.set_xlabel("side of a square (tokens)", fontsize=8.5)
    axes.set_ylabel("share within it (%)", fontsize=8.5, labelpad=1)
    axes.set_ylim(0, 103)
    handles = [axes.plot([], [], style, color=GREY)[0] for style in (":", "-")]
    axes.legend(
        handles, ["before", "after"], fontsize=8, frameon=False, handlelength=1.2, loc="lower right", borderpad=0
    )
    axes.set_xticks([1, 3, 7, 15])
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


def _within(field: np.ndarray, token: tuple[int, int], side: int) -> float:
    """The sum over a square around the token."""
    half = side // 2
    rows, columns = (slice(max(0, n - half), n + half + 1) for n in token)
    return float(field[rows, columns].sum())


def _outline(axes: "Axes", token: tuple[int, int], width: int, colour: str) -> None:
    from matplotlib.patches import Rectangle

    corner = (token[1] - width / 2, token[0] - width / 2)
    axes.add_patch(Rectangle(corner, width, width, fill=False, edgecolor=colour, lw=1.3))


def _empty(axes: "Axes") -> "Axes":
    axes.set_xticks([])
    axes.set_yticks([])
    return axes


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(3, min_n_ticks=2)

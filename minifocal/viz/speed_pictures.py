"""Pictures of measured ratios: how fast each candidate is beside another, and how cost grows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minifocal.viz.canvas import BLUE, GREEN, GREY, ORANGE, PURPLE, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PEER_COLOURS = ("#BBBBBB", "#888888", "#555555")  # of PyTorch's ways
OWN_COLOURS = (ORANGE, BLUE, GREEN, PURPLE)
PEER, LIMIT = "torch", "floor"
LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
BAR, PANEL = 0.17, 0.42  # inches: a bar, and what a panel needs around its bars


def draw_speeds(rows: Sequence[tuple[str, str, Mapping[str, float]]], relative_to: str, path: Path) -> None:
    """Draw a panel of bars for each workload and mode: times as fast as one candidate, which is the line at 1.

    The candidate "floor" is no bar but a mark: nothing can be faster.

    Args:
        rows: workload, mode, and the speed of each candidate.
        relative_to: the candidate whose speed is 1.
        path: of the PNG file.
    Raises:
        InputError: the file cannot be written.
    """
    workloads = list(dict.fromkeys(workload for workload, _, _ in rows))
    modes = list(dict.fromkeys(mode for _, mode, _ in rows))
    names = dict.fromkeys(name for _, _, speeds in rows for name in speeds)
    bars = [name for name in names if name not in (relative_to, LIMIT)]
    colours = _colours(bars)
    height = len(workloads) * (BAR * max(len(bars), 2) + PANEL) + 0.8
    figure = new_figure(8.5, height)
    panels = figure.subplots(len(workloads), len(modes), sharex="col", sharey=True, squeeze=False)
    for axes in panels.flat:
        axes.set_visible(False)
    for workload, mode, speeds in rows:
        axes = panels[workloads.index(workload), modes.index(mode)]
        axes.set_visible(True)
        _draw_bars(axes, bars, speeds, colours)
        if LIMIT in speeds and relative_to != LIMIT:
            axes.axvline(speeds[LIMIT], color="black", lw=1.5, ls=":", zorder=0, label="matrix products alone")
    for column, title in zip(panels.T, modes, strict=True):
        shown = [axes for axes in column if axes.get_visible()]
        shown[0].set_title(title, fontsize=10)
        shown[-1].tick_params(labelbottom=True)
        fastest = max(speed for _, mode, speeds in rows if mode == title for speed in speeds.values())
        shown[0].set_xlim(0, 1.15 * fastest)
    for axes, workload in zip(panels[:, 0], workloads, strict=True):
        axes.set_ylabel(workload, fontsize=10, rotation=0, ha="right", va="center")
    base = "the matrix products alone" if relative_to == LIMIT else relative_to
    figure.supxlabel(f"times as fast as {base} (the line at 1)", fontsize=9)
    handles: dict[str, Any] = {}
    for axes in panels.flat:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=len(handles), frameon=False, fontsize=8.5)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / height))
    save_figure(figure, path)


def draw_scaling(series: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the cost by number of images and by pixels, beside the line of a cost that grows in proportion.

    Args:
        series: for each axis and mode a dict of "axis", "mode", "sizes" and "cost", the latter 1 at the first size.
        path: of the PNG file.
    Raises:
        InputError: the file cannot be written.
    """
    figure = new_figure(8.5, 3.6)
    names = list(dict.fromkeys(line["axis"] for line in series))
    modes = list(dict.fromkeys(line["mode"] for line in series))
    colours = dict(zip(modes, (ORANGE, BLUE), strict=False))
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        lines = [line for line in series if line["axis"] == name]
        sizes = lines[0]["sizes"]
        guide = [size / sizes[0] for size in sizes]
        axes.loglog(sizes, guide, color=GREY, ls="--", lw=1, label="in proportion")
        for line in lines:
            axes.loglog(line["sizes"], line["cost"], "o-", color=colours[line["mode"]], ms=4, label=line["mode"])
        labels = [f"{round(size**0.5)}²" if name == "pixels" else str(size) for size in sizes]
        axes.set_xticks(sizes, labels)
        axes.minorticks_off()
        axes.set_yticks(guide, [f"{factor:.3g}" for factor in guide])
        axes.set_xlabel(f"{name} of an image" if name == "pixels" else name)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("cost, relative to the smallest")
    panels[0].legend(frameon=False)
    figure.tight_layout()
    save_figure(figure, path)


def _colours(names: Sequence[str]) -> dict[str, str]:
    peers = [name for name in names if name.startswith(PEER)]
    own = [name for name in names if name not in peers]
    return {
        name: palette[index % len(palette)]
        for group, palette in ((peers, PEER_COLOURS), (own, OWN_COLOURS))
        for index, name in enumerate(group)
    }


def _draw_bars(axes: "Axes", names: Sequence[str], speeds: Mapping[str, float], colours: Mapping[str, str]) -> None:
    axes.axvline(1.0, color="black", lw=0.8)
    for position, name in enumerate(names):
        if name in speeds:
            bar = axes.barh(position, speeds[name], height=0.8, color=colours[name], label=name)
            axes.bar_label(bar, fmt="%.2f", padding=2, fontsize=8, bbox=LABEL)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks([])
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)

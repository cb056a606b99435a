"""Pictures of training on several ranks: measured on one machine beside a model, and what it says of many machines."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minifocal.viz.canvas import BLUE, GREEN, GREY, ORANGE, PURPLE, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (ORANGE, BLUE, GREEN, PURPLE)
DASHES = ("-", "--", ":", "-.")  # of networks
HALF = 0.5
TICKS = (1, 4, 16, 64, 256, 1024)  # machines


def draw_ranks(series: Sequence[Mapping[str, Any]], curves: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the speed of one machine's ranks beside the model's, and what each of many machines does on paper.

    Of several tables of operations the machines on paper use the first one. A dot shows from where each machine does
    less than half of what it does alone.

    Args:
        series: dicts of "workload", "ops", "ranks", "speed" and "predicted", the latter two beside one process.
        curves: dicts of "workload", "ops", "network", "images", "weak", "ranks", "speed_up" and "half".
        path: of the PNG file.
    Raises:
        InputError: the file cannot be written.
    """
    figure = new_figure(8.5, 4.2)
    names = [(line["workload"], line["ops"]) for line in series]
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(dict.fromkeys(names))}
    of_first = [line for line in curves if line["ops"] == series[0]["ops"]]
    panels = figure.subplots(1, 3 if of_first else 1, squeeze=False)[0]
    _draw_measured(panels[0], series, colours)
    for axes, weak in zip(panels[1:], (True, False), strict=False):
        _draw_on_paper(axes, [line for line in of_first if line["weak"] == weak], colours)
        images = next(line["images"] for line in of_first if line["weak"] == weak)
        axes.set_title(f"on paper: {'a batch each' if weak else f'one batch, {images}'}", fontsize=9)
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
    figure.tight_layout()
    save_figure(figure, path)


def _draw_measured(axes: "Axes", series: Sequence[Mapping[str, Any]], colours: Mapping[tuple[str, str], str]) -> None:
    axes.axhline(1.0, color="black", lw=0.8)
    for line in series:
        name = line["workload"], line["ops"]
        axes.plot(line["ranks"], line["speed"], "o", color=colours[name], ms=5, label=", ".join(name))
        axes.plot(line["ranks"], line["predicted"], "--", color=colours[name], lw=1)
    axes.plot([], [], "--", color=GREY, lw=1, label="the model")
    ranks = sorted({count for line in series for count in line["ranks"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(count) for count in ranks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_title("measured on one machine", fontsize=9)
    axes.set_xlabel("ranks of one thread", fontsize=9)
    axes.set_ylabel("times as fast as one process, all cores", fontsize=9)
    axes.legend(frameon=False, fontsize=8)


def _draw_on_paper(axes: "Axes", curves: Sequence[Mapping[str, Any]], colours: Mapping[tuple[str, str], str]) -> None:
    networks = list(dict.fromkeys(line["network"] for line in curves))
    axes.axhline(HALF, color="black", lw=0.8, ls=":")
    for line in curves:
        colour = colours[line["workload"], line["ops"]]
        style = DASHES[networks.index(line["network"]) % len(DASHES)]
        efficiency = [speed / count for speed, count in zip(line["speed_up"], line["ranks"], strict=True)]
        label = f"{line['workload']}, {line['network']}"
        axes.plot(line["ranks"], efficiency, style, color=colour, lw=1.5, label=label)
        if line["half"] is not None:
            axes.plot(line["half"], HALF, "o", color=colour, ms=4)
    axes.set_xscale("log", base=2)
    axes.set_xticks(TICKS, [f"{count:,}" for count in TICKS])
    axes.minorticks_off()
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("machines", fontsize=9)
    axes.set_ylabel("speed of each, beside that of one alone", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="lower left")

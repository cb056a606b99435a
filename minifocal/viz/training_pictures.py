"""Trainings: curves of several seeds with their mean, and three modulations under one budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minifocal.data.dataset import Dataset, Standardize
from minifocal.models.config import BOX_MEAN, FOCAL, SIGMOID_GATE
from minifocal.models.focalnet import FocalNet
from minifocal.training.listener import Listener
from minifocal.training.step import evaluate
from minifocal.training.train_config import TrainConfig
from minifocal.training.trainer import Trainer
from minifocal.viz.canvas import BLUE, GREEN, GREY, ORANGE, new_figure, save_figure
from minifocal.viz.records import numbers, positive, rounded

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {FOCAL: BLUE, SIGMOID_GATE: ORANGE, BOX_MEAN: GREEN}
LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
MOST_LINES = 50  # datasets, and learning rates of one
CURVES = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")


@dataclass(frozen=True)
class Trainings:
    """Several trainings of one recipe.

    Attributes:
        modulation: of the networks. seeds: (S,).
        curves: by name (`CURVES`), (S, epochs): losses in nats, accuracies as shares.
        accuracies: (S,), on the test images, as shares.
    """

    modulation: str
    seeds: list[int]
    curves: dict[str, np.ndarray]
    accuracies: np.ndarray


def measure_trainings(
    build: Callable[[str, int], tuple[FocalNet, TrainConfig]],
    modulations: Sequence[str],
    seeds: Sequence[int],
    data: tuple[Dataset, Dataset, Dataset],
    progress: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Train every modulation with every seed.

    Args:
        build: gives a network and how to train it, for a modulation and a seed.
        modulations, seeds: what to train. data: to train, to validate and to test on.
        progress: called after every epoch.
    Raises:
        KeyboardInterrupt: a training was stopped.
    """
    train, validation, test = data
    standardize = Standardize.fit(train)
    found, ops = [], ""
    for modulation in modulations:
        for seed in seeds:
            model, config = build(modulation, seed)
            trainer = Trainer(model, train, validation, standardize, config, listener=_Steps(progress))
            if not trainer.fit():
                raise KeyboardInterrupt
            curves = {name: rounded([line[name] for line in trainer.history], 4) for name in CURVES}
            accuracy = rounded(evaluate(model, test, standardize).accuracy, 5)
            found.append({"modulation": modulation, "seed": seed, **curves, "accuracy": accuracy})
            ops = model.ops.name
    return {"ops": ops, "images": list(map(len, data)), "runs": found}


def read_trainings(record: dict[str, Any]) -> list[Trainings]:
    """Read what `measure_trainings` gave, out of a record that may hold anything."""
    by_modulation: dict[str, list[dict[str, Any]]] = {}
    for run in record["runs"]:
        by_modulation.setdefault(str(run["modulation"]), []).append(run)
    if not by_modulation:
        raise ValueError("no run")
    return [
        Trainings(
            modulation=modulation,
            seeds=[int(run["seed"]) for run in runs],
            curves={name: numbers([run[name] for run in runs], len(runs), None) for name in CURVES},
            accuracies=numbers([run["accuracy"] for run in runs], len(runs)),
        )
        for modulation, runs in by_modulation.items()
    ]


def draw_trainings(recipes: Sequence[Trainings], path: Path) -> None:
    """Draw loss and error by epoch: each seed thin, the mean thick.

    Args:
        recipes: one for each modulation. path: of the PNG or SVG file.
    Raises:
        InputError: the file cannot be written.
    """
    figure = new_figure(8.5, 4.0)
    panels = figure.subplots(1, 2)
    for recipe in recipes:
        colour = COLOURS.get(recipe.modulation, GREY)
        low, high = 100 * recipe.accuracies.min(), 100 * recipe.accuracies.max()
        label = (
            f"{recipe.modulation}: test accuracy {100 * recipe.accuracies.mean():.2f} % "
            f"({low:.2f} to {high:.2f}, {len(recipe.seeds)} seeds)"
        )
        for axes, name in zip(panels, ("loss", "accuracy"), strict=True):
            for part, style in (("train", "--"), ("val", "-")):
                values = recipe.curves[f"{part}_{name}"]
                values = 100 * (1 - values) if name == "accuracy" else values
                epochs = np.arange(1, values.shape[1] + 1)
                if part == "val":
                    axes.plot(epochs, values.T, color=colour, lw=0.6, alpha=0.4)
                axes.plot(
                    epochs, values.mean(axis=0), style, color=colour, lw=1.8, label=label if part == "val" else "_"
                )
    losses, errors = panels
    losses.set_ylabel("cross-entropy (nats)", fontsize=9)
    losses.set_ylim(bottom=0)
    errors.set_ylabel("wrong (%)", fontsize=9)
    _percent_axis(errors)
    for axes in panels:
        axes.set_xlabel("epoch", fontsize=9)
        axes.set_xlim(left=1)
        axes.tick_params(labelsize=8.5)
        axes.grid(alpha=0.3)
    styles = [losses.plot([], [], style, color=GREY)[0] for style in ("-", "--")]
    names = ["validation: mean, and each seed (thin)", "training: mean; augmented, smoothed labels"]
    losses.legend(styles, names, frameon=False, fontsize=8.5)
    figure.legend(*errors.get_legend_handles_labels(), loc="upper center", frameon=False, fontsize=8.5)
    figure.tight_layout(rect=(0, 0, 1, 0.97 - 0.05 * len(recipes)))
    save_figure(figure, path)


def _percent_axis(axes: "Axes") -> None:
    """Logarithmic above 1 %, linear below: runs without a mistake have a place, too."""
    axes.set_yscale("symlog", linthresh=1)
    axes.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    axes.set_ylim(-0.06, 100)  # room for the dots at 0


@dataclass(frozen=True)
class Ablation:
    """Runs of three modulations with equal budgets on one dataset.

    Attributes:
        dataset: its name. baseline: of one nearest neighbour, a share.
        rates: learning rates that were tried. validation: by modulation, (rates, seeds), shares that are right.
        chosen: by modulation, the rate. test: by modulation, (seeds,), with that rate.
    """

    dataset: str
    baseline: float
    rates: list[float]
    validation: dict[str, np.ndarray]
    chosen: dict[str, float]
    test: dict[str, np.ndarray]


def read_ablation(record: dict[str, Any]) -> list[Ablation]:
    """Read the record of tutorial 10, which may hold anything."""
    found = []
    if len(record["nearest_neighbour"]) > MOST_LINES:
        raise ValueError("more datasets than a picture has room for")
    for dataset, baseline in record["nearest_neighbour"].items():
        runs = [run for run in record["runs"] if run["dataset"] == dataset]
        rates = sorted({float(positive(run["lr"])) for run in runs})
        if len(rates) > MOST_LINES:
            raise ValueError("more learning rates than a picture has room for")
        names = [name for name in COLOURS if any(run["modulation"] == name for run in runs)]
        if not names:
            raise ValueError(f"no run of {dataset}")

        def of(name: str, measured_on: str, runs: list[dict[str, Any]] = runs) -> list[dict[str, Any]]:
            return [run for run in runs if (run["modulation"], run["measured_on"]) == (name, measured_on)]

        validation = {
            name: numbers(
                [[run["accuracy"] for run in of(name, "validation") if run["lr"] == rate] for rate in rates],
                len(rates),
                None,
            )
            for name in names
        }
        test = {name: numbers([run["accuracy"] for run in of(name, "test")], None) for name in names}
        chosen = {name: float(of(name, "test")[0]["lr"]) for name in names}
        found.append(Ablation(str(dataset), float(numbers(baseline)), rates, validation, chosen, test))
    if not found:
        raise ValueError("no dataset")
    return found


def draw_ablation(datasets: Sequence[Ablation], path: Path) -> None:
    """Draw two panels for each dataset: how the learning rate was chosen, and what the chosen one came to.

    Args:
        datasets: as `read_ablation` gives them. path: of the PNG or SVG file.
    Raises:
        InputError: the file cannot be written.
    """
    figure = new_figure(8.5, 3.1 * len(datasets))
    for row, found in zip(figure.subplots(len(datasets), 2, squeeze=False), datasets, strict=True):
        _draw_choice(row[0], found)
        _draw_outcome(row[1], found)
    figure.tight_layout()
    save_figure(figure, path)


def _draw_choice(axes: "Axes", found: Ablation) -> None:
    for name, shares in found.validation.items():
        wrong = 100 * (1 - shares)
        axes.plot(found.rates, wrong.mean(axis=1), "-", color=COLOURS[name], label=name)
        axes.plot(found.rates, wrong, "o", color=COLOURS[name], ms=3, alpha=0.6)
        at = found.rates.index(found.chosen[name])
        axes.plot(found.chosen[name], wrong[at].mean(), "s", color=COLOURS[name], ms=8, mfc="none")
    axes.set_xscale("log")
    axes.set_xticks(found.rates, [f"{rate:g}" for rate in found.rates])
    axes.minorticks_off()
    axes.set_xlabel("learning rate (square: chosen)", fontsize=9)
    axes.set_ylabel("wrong of validation images (%)", fontsize=9)
    axes.set_title(f"{found.dataset}: choosing the rate", fontsize=10)
    axes.legend(frameon=False, fontsize=8.5)
    _finish(axes)


def _draw_outcome(axes: "Axes", found: Ablation) -> None:
    for position, (name, shares) in enumerate(found.test.items()):
        wrong = 100 * (1 - np.sort(shares))
        axes.plot(position + np.linspace(-0.2, 0.2, len(wrong)), wrong, "o", color=COLOURS[name], ms=4, alpha=0.7)
        middle = float(np.median(wrong))
        axes.plot([position - 0.3, position + 0.3], [middle, middle], color=COLOURS[name], lw=2)
        axes.text(position + 0.34, middle, f"{middle:.1f}", color=COLOURS[name], va="center", bbox=LABEL, fontsize=8.5)
    nearest = 100 * (1 - found.baseline)
    axes.axhline(nearest, color=GREY, ls=":", lw=1, zorder=0)
    edge = len(found.test) - 0.45
    axes.text(edge, 0.93 * nearest, "one nearest neighbour", color=GREY, ha="right", va="top", fontsize=8.5)
    axes.set_xticks(range(len(found.test)), list(found.test))
    axes.set_xlim(-0.5, len(found.test) - 0.4)
    axes.set_ylabel("wrong of test images (%)", fontsize=9)
    seeds = len(next(iter(found.test.values())))
    axes.set_title(f"{found.dataset}: {seeds} seeds each, and their median", fontsize=10)
    _finish(axes)


def _finish(axes: "Axes") -> None:
    _percent_axis(axes)
    axes.set_yticks([0, 1, 3, 10, 30, 100], ["0", "1", "3", "10", "30", "100"])
    axes.tick_params(labelsize=8.5)
    axes.grid(alpha=0.3)


class _Steps(Listener):
    def __init__(self, progress: Callable[[], object]) -> None:
        self.progress = progress

    def on_epoch(self, record: dict[str, Any]) -> None:
        self.progress()

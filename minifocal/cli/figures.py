"""`minifocal figures`: draw every file in figures/ again, and measure what is drawn."""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minifocal.bench import rank_results, report, scaling
from minifocal.cli.common import progress_bar, split_validation
from minifocal.cli.recipes import recipe_for
from minifocal.data import digits_splits, shapes_splits
from minifocal.errors import InputError, shown
from minifocal.files import saving
from minifocal.models.config import FOCAL, SIGMOID_GATE, FocalNetConfig
from minifocal.models.focalnet import FocalNet
from minifocal.models.zoo import create_model
from minifocal.training.train_config import TrainConfig
from minifocal.viz import records, run_pictures, step_pictures, training_pictures, watched_run
from minifocal.viz.block_picture import draw_block
from minifocal.viz.pictures import draw_architecture
from minifocal.viz.rank_pictures import draw_ranks
from minifocal.viz.speed_pictures import draw_scaling, draw_speeds

HELP = "draw the pictures of the README again, or measure them again first"
EXAMPLE = "minifocal figures --measure gradcheck"

PNG, BOTH = (".png",), (".png", ".svg")
SEEDS = (0, 1, 2, 3, 4)  # those of the README's table
SHAPES_SIZE = 64  # pixels; twice the recipe's, for maps of 16 × 16 tokens

ARCHITECTURE = "focalnet_tiny_srf"
BLOCK = FocalNetConfig(  # sizes all different, so that a shape tells what an array is
    image_size=(20, 16), embed_dim=6, depths=(1,), mlp_ratio=3.0, focal_levels=(2,), focal_windows=(3,), num_classes=0
)

Progress = Callable[[], object]


@dataclass(frozen=True)
class Measured:
    """A record beside the pictures.

    Attributes:
        measure: makes it; calls progress `count` times.
        count: of calls.
    """

    measure: Callable[[Progress], dict[str, Any]]
    count: Callable[[], int]


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        draw: writes it to a path, from what `read` gave; from None where there is no record.
        kinds: suffixes of its files.
        record: name of what it is drawn from, a path relative to the folder of pictures; "" where a model is drawn.
        read: takes what is drawn out of the record, which may hold anything.
    """

    draw: Callable[[Any, Path], None]
    kinds: tuple[str, ...] = PNG
    record: str = ""
    read: Callable[[dict[str, Any]], Any] = dict

    def files(self, name: str) -> list[str]:
        """The names of its files."""
        return [name + kind for kind in self.kinds]


FIGURES = {
    "architecture": Figure(lambda _, path: draw_architecture(create_model(ARCHITECTURE, init="zeros"), path), BOTH),
    "block": Figure(lambda _, path: draw_block(FocalNet(BLOCK, init="lecun", ops="reference"), path), BOTH),
    "gradcheck": Figure(step_pictures.draw_steps, BOTH, "gradcheck.json", step_pictures.read_steps),
    "receptive_fields": Figure(run_pictures.draw_fields, PNG, "shapes.json", watched_run.read_run),
    "gates": Figure(run_pictures.draw_gates, PNG, "shapes.json", watched_run.read_run),
    "training": Figure(training_pictures.draw_trainings, PNG, "training.json", training_pictures.read_trainings),
    "ablation": Figure(
        training_pictures.draw_ablation, PNG, "../tutorials/data/ablation.json", training_pictures.read_ablation
    ),
    "bench": Figure(lambda read, path: draw_speeds(read[0], read[1], path), PNG, "bench.json", report.speeds),
    "scaling": Figure(draw_scaling, PNG, "scaling.json", scaling.scaling_series),
    "ranks": Figure(lambda read, path: draw_ranks(read[0], read[1], path), PNG, "ranks.json", rank_results.read_series),
}
"""Every picture in figures/, by name."""


def _count_shapes() -> int:
    return recipe_for("shapes").choose(FOCAL)[1].epochs


def _measure_shapes(progress: Progress) -> dict[str, Any]:
    splits = shapes_splits(size=SHAPES_SIZE)
    train, validation = split_validation(splits)
    network, config = recipe_for("shapes").choose(FOCAL)
    model = network.build(FOCAL, splits.train, seed=0)
    return watched_run.measure_run(model, train, validation, splits.test, config, progress)


def _count_training() -> int:
    return len(SEEDS) * sum(recipe_for("digits").choose(name)[1].epochs for name in (FOCAL, SIGMOID_GATE))


def _measure_training(progress: Progress) -> dict[str, Any]:
    splits = digits_splits()
    train, validation = split_validation(splits)

    def build(modulation: str, seed: int) -> tuple[FocalNet, TrainConfig]:
        network, config = recipe_for("digits").choose(modulation)
        return network.build(modulation, splits.train, seed=seed), replace(config, seed=seed)

    data = train, validation, splits.test
    return training_pictures.measure_trainings(build, (FOCAL, SIGMOID_GATE), SEEDS, data, progress)


MEASURED = {
    "gradcheck.json": Measured(step_pictures.measure_steps, step_pictures.count_steps),
    "shapes.json": Measured(_measure_shapes, _count_shapes),
    "training.json": Measured(_measure_training, _count_training),
}
"""The records that this command measures."""

ELSEWHERE = {
    "bench.json": "minifocal bench --workload all --json figures/bench.json",
    "scaling.json": "minifocal bench --scaling --ops numba --json figures/scaling.json",
    "ranks.json": "minifocal bench --ranks 1 2 4 --workload small tiny_srf --ops numba numpy --rounds 5 "
    "--json figures/ranks.json",
    "../tutorials/data/ablation.json": "python tutorials/10_three_modulations.py and LONG = True in it",
}
"""The other records, and what writes them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the names of the pictures, whether to measure, and the folder."""
    names = ", ".join(FIGURES)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{names} (default: all whose numbers are there)")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure first, from fixed seeds, what the pictures named are drawn from: some minutes for all",
    )
    parser.add_argument("--out", type=Path, default=Path("figures"), metavar="FOLDER", help="default: figures")


def run(args: argparse.Namespace) -> int:
    """Measure if asked to, draw, and say what was written."""
    unknown = [name for name in args.names if name not in FIGURES]
    if unknown:
        raise InputError(f"there is no figure {shown(unknown[0])}; the figures are {', '.join(FIGURES)}")
    names = list(dict.fromkeys(args.names)) or list(FIGURES)
    if args.measure:
        measured = _records_to_measure(names, asked_for=bool(args.names))
        for record in measured:
            _measure(record, args.out / record)
        names = [name for name in FIGURES if name in names or FIGURES[name].record in measured]
    drawn = _read(names, args.out, asked_for=bool(args.names))
    for name, content in drawn.items():
        for file in FIGURES[name].files(name):
            FIGURES[name].draw(content, args.out / file)
            print(args.out / file)
    missing = [name for name in names if name not in drawn]
    if missing:
        text = f"not drawn, for want of numbers: {', '.join(missing)}; name one to see what writes them"
        print(f"minifocal figures: {text}", file=sys.stderr)
    return 0


def _read(names: list[str], folder: Path, asked_for: bool) -> dict[str, Any]:
    """Read what these pictures are drawn from; without a record there is no picture, unless a person asked for it."""
    found: dict[str, Any] = {}
    for name in names:
        figure = FIGURES[name]
        path = Path(os.path.normpath(folder / figure.record))
        if not figure.record:
            found[name] = None
        elif path.exists():
            found[name] = records.read_record(path, figure.read, _again(name))
        elif asked_for:
            raise InputError(f"{name} is drawn from {path}, which is not there; write it with {_again(name)}")
    return found


def _records_to_measure(names: list[str], asked_for: bool) -> list[str]:
    """Give the records behind these pictures; refuse those from elsewhere, where a person asked for them."""
    for name in names if asked_for else []:
        if FIGURES[name].record not in MEASURED:
            how = f"its numbers come from {_again(name)}" if FIGURES[name].record else "it is drawn from a model"
            raise InputError(f"--measure does nothing for {name}: {how}; leave it out")
    records_of = (FIGURES[name].record for name in names)
    return [record for record in dict.fromkeys(records_of) if record in MEASURED]


def _again(name: str) -> str:
    """Say how the record of a picture is written again."""
    return ELSEWHERE.get(FIGURES[name].record, f"minifocal figures --measure {name}")


def _measure(record: str, path: Path) -> None:
    measured = MEASURED[record]
    with saving(path):
        pass  # a folder that cannot be made is found out before the minutes of work
    print(f"measuring {path}", flush=True)
    with progress_bar(measured.count(), " parts") as bar:
        found = measured.measure(bar.update)
    records.write_record(path, found)
    print(path, flush=True)

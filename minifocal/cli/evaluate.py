"""`minifocal evaluate`: a checkpoint on test images."""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from minifocal.arrays import overflow_is_looked_for
from minifocal.cli.common import (
    WEIGHTS_HELP,
    add_data_arguments,
    add_device_argument,
    add_names_argument,
    add_settings_argument,
    check_classifier,
    class_names_of,
    on_terminal,
    open_weights,
    preprocess_of,
    table,
)
from minifocal.data import DATASETS, FIXED_SIZE, Dataset, folder_dataset, load_splits
from minifocal.errors import InputError, check_integer
from minifocal.interop import Preprocess, Pretrained
from minifocal.training.step import evaluate

HELP = "measure a checkpoint on the test images: loss, accuracy, and what is taken for what"
EXAMPLE = "minifocal evaluate runs/digits"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint and the data."""
    parser.add_argument("checkpoint", type=Path, help=WEIGHTS_HELP)
    add_data_arguments(parser, "what it was trained on")
    parser.add_argument("--batch-size", type=int, default=256, help="images at a time (default: 256)")
    add_names_argument(parser)
    add_settings_argument(parser)
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print accuracy by class and the accuracy over all."""
    check_integer("--batch-size", args.batch_size, at_least=1)
    pretrained = open_weights(args.checkpoint, args)
    check_classifier(pretrained)
    preprocess, names = preprocess_of(pretrained, args), class_names_of(pretrained, args)
    dataset, note = _test_images(pretrained, preprocess, args)
    print(f"checkpoint: {pretrained.path}, data: {note}")
    _check_images(pretrained, names, dataset)
    model = pretrained.build(device=args.device)
    with _bar("images", len(dataset)) as bar, overflow_is_looked_for():
        result = evaluate(model, dataset, preprocess.standardize, args.batch_size, bar.update)
    if not math.isfinite(result.loss):
        raise InputError(f"{pretrained.path} gives a loss of {result.loss}: its numbers overflow on these images")
    rows = []
    for label, (name, row) in enumerate(zip(names, result.confusion, strict=True)):
        count = sum(row)
        mistakes = sorted(((n, names[i]) for i, n in enumerate(row) if n and i != label), reverse=True)
        taken = ", ".join(f"{other} ({n})" for n, other in mistakes[:3])
        rows.append([name, str(count), f"{100 * row[label] / count:.2f} %" if count else "", taken])
    print(table(["class", "images", "right", "taken for"], rows))
    print(f"loss {result.loss:.4f}")
    print(f"test accuracy {100 * result.accuracy:.2f} %")
    return 0


def _test_images(pretrained: Pretrained, preprocess: Preprocess, args: argparse.Namespace) -> tuple[Dataset, str]:
    """Load what is asked for, or what the network was trained on; and a line that says what it is.

    Weights that were not trained here are measured on all images of a folder, prepared as they want them.
    """
    trained_on: Any = pretrained.meta.get("data")
    if trained_on is not None and not _names_data(trained_on):
        raise InputError(f"{pretrained.path} does not say what it was trained on in a way that minifocal train writes")
    given = {"data": args.data, "root": args.data_root, "image_size": args.image_size}
    given = {name: value for name, value in given.items() if value is not None}
    if not args.data and trained_on is None:
        raise InputError(f"{pretrained.path} does not say what it was trained on; name the images with --data")
    if args.data and args.data not in DATASETS and trained_on is None:
        prepared = preprocess.at_size(args.image_size or preprocess.crop)
        with _bar("reading") as bar:

            def read(path: Path) -> np.ndarray:
                bar.update()
                return prepared.read_pixels(path)

            dataset, folder = folder_dataset(args.data, read)
        return dataset, f"all {len(dataset)} images in {folder}"
    if args.data:  # at the network's size, where the data comes in any
        trained_on = {} if args.data in FIXED_SIZE else {"image_size": preprocess.crop}
    splits = load_splits(**{**trained_on, **given})
    return splits.test, f"{splits.name}, {splits.note}"


def _bar(what: str, total: int | None = None) -> tqdm:
    """Make a bar of images for a terminal; elsewhere it stays silent."""
    return tqdm(desc=what, total=total, unit=" img", disable=not on_terminal())


def _names_data(value: Any) -> bool:
    """Whether a value is what `minifocal train` stores about its data."""
    if not isinstance(value, dict) or value.keys() - {"data", "root", "image_size"}:
        return False
    kinds = {"data": str, "root": str | None, "image_size": int | None}
    return isinstance(value.get("data"), str) and all(isinstance(value.get(name), kind) for name, kind in kinds.items())


def _check_images(pretrained: Pretrained, names: list[str], dataset: Dataset) -> None:
    """Refuse images of other channels or classes; say where images have another size, or classes another name."""
    if dataset.in_channels != pretrained.config.in_chans:
        raise InputError(
            f"the images have {dataset.in_channels} channels and {pretrained.path} takes {pretrained.config.in_chans}; "
            "choose other data with --data"
        )
    if pretrained.preprocess is not None and dataset.image_size[0] != pretrained.preprocess.crop:
        height, width = dataset.image_size
        print(
            f"images are taken as they are, {height} x {width}; the weights expect {pretrained.preprocess.crop} pixels"
        )
    theirs = list(dataset.class_names)
    if theirs == names:
        return
    if len(theirs) != len(names) or "data" in pretrained.meta:
        raise InputError(
            f"{pretrained.path} was trained on the classes {', '.join(names)[:200]}, but the data has "
            f"{', '.join(theirs)[:200]}; choose other data with --data"
        )
    print(f"classes are matched by their order: the first is {names[0]!r} here and {theirs[0]!r} in the data")

"""`minifocal evaluate`: a checkpoint on test images."""

import argparse
from pathlib import Path

from minifocal.cli.common import (
    WEIGHTS_HELP,
    add_data_arguments,
    add_device_argument,
    add_weights_arguments,
    class_names_of,
    open_weights,
    preprocess_of,
    table,
)
from minifocal.data import FIXED_SIZE, Splits, load_splits
from minifocal.errors import InputError, check_integer
from minifocal.interop import Pretrained
from minifocal.training.step import evaluate

HELP = "measure a checkpoint on the test images: loss, accuracy, and what is taken for what"
EXAMPLE = "minifocal evaluate runs/digits"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint and the data."""
    parser.add_argument("checkpoint", type=Path, help=WEIGHTS_HELP)
    add_data_arguments(parser, "what it was trained on")
    parser.add_argument("--batch-size", type=int, default=256, help="images at a time (default: 256)")
    add_weights_arguments(parser)
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print accuracy by class and the accuracy over all."""
    check_integer("--batch-size", args.batch_size, at_least=1)
    pretrained = open_weights(args.checkpoint, args)
    preprocess, names = preprocess_of(pretrained), class_names_of(pretrained)
    splits = _splits(pretrained, args)
    print(f"checkpoint: {pretrained.path}, data: {splits.name}, {splits.note}")
    _check_classes(pretrained, names, splits)
    model = pretrained.build(device=args.device)
    result = evaluate(model, splits.test, preprocess.standardize, args.batch_size)
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


def _splits(pretrained: Pretrained, args: argparse.Namespace) -> Splits:
    """Load what is asked for, or what the network was trained on; images of any size as the network saw them."""
    given = {"data": args.data, "root": args.data_root, "image_size": args.image_size}
    given = {name: value for name, value in given.items() if value is not None}
    if not args.data:
        if "data" not in pretrained.meta:
            raise InputError(f"{pretrained.path} does not say what it was trained on; name the images with --data")
        return load_splits(**{**pretrained.meta["data"], **given})
    if args.data in FIXED_SIZE:
        return load_splits(**given)
    preprocess = preprocess_of(pretrained)
    if args.image_size:
        preprocess = preprocess.at_size(args.image_size)
    prepared = {"image_size": preprocess.crop, "resize": preprocess.resize, "resample": preprocess.resample}
    return load_splits(**{**prepared, **given, "channels": pretrained.config.in_chans})


def _check_classes(pretrained: Pretrained, names: list[str], splits: Splits) -> None:
    """Refuse data of other classes; where only their names differ, as of weights from elsewhere, their order counts."""
    theirs = list(splits.test.class_names)
    if theirs == names:
        return
    if len(theirs) != len(names) or "data" in pretrained.meta:
        raise InputError(
            f"{pretrained.path} was trained on the classes {', '.join(names)[:200]}, but {splits.name} has "
            f"{', '.join(theirs)[:200]}; choose other data with --data"
        )
    print(f"classes are matched by their order: the first is {names[0]!r} here and {theirs[0]!r} in the data")

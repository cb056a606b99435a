"""`minifocal evaluate`: a checkpoint on test images."""

import argparse
from pathlib import Path

from minifocal.cli.common import (
    add_data_arguments,
    add_device_argument,
    load_model,
    table,
    trained_class_names,
    trained_standardize,
    training_meta,
)
from minifocal.data import FIXED_SIZE, load_splits
from minifocal.errors import InputError, check_integer
from minifocal.training.step import evaluate

HELP = "measure a checkpoint on the test images: loss, accuracy, and what is taken for what"
EXAMPLE = "minifocal evaluate runs/digits"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint and the data."""
    parser.add_argument("checkpoint", type=Path, help="a .safetensors file, or the folder of a run (its best)")
    add_data_arguments(parser, "what it was trained on")
    parser.add_argument("--batch-size", type=int, default=256, help="images at a time (default: 256)")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print accuracy by class and the accuracy over all."""
    check_integer("--batch-size", args.batch_size, at_least=1)
    model, checkpoint = load_model(args.checkpoint, args.device)
    given = {"data": args.data, "root": args.data_root, "image_size": args.image_size}
    if args.data:  # at the network's size, where the data comes in any
        trained_on = {} if args.data in FIXED_SIZE else {"image_size": model.config.image_hw[0]}
    else:
        trained_on = training_meta(checkpoint, "data")
    splits = load_splits(**{**trained_on, **{name: value for name, value in given.items() if value is not None}})
    print(f"checkpoint: {checkpoint.path}, data: {splits.name}, {splits.note}")
    names = trained_class_names(checkpoint)
    if list(splits.test.class_names) != names:
        raise InputError(
            f"{checkpoint.path} was trained on the classes {', '.join(names)}, but {splits.name} has "
            f"{', '.join(splits.test.class_names)}; choose other data with --data"
        )
    result = evaluate(model, splits.test, trained_standardize(checkpoint), args.batch_size)
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

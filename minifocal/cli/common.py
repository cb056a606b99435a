"""What several commands share: arguments, tables, models and data from files."""

import argparse
import ast
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from minifocal.data import DATASETS, Dataset, Splits
from minifocal.data.dataset import stratified_split
from minifocal.errors import InputError
from minifocal.interop import Preprocess, Pretrained, open_pretrained
from minifocal.interop.descriptions import read_class_names

VALIDATION_FRACTION = 0.1
SPLIT_SEED = 0  # of the validation images: the same ones whatever the seed of a run


def add_data_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --data, --data-root and --image-size; `default` tells what happens without them."""
    text = f"{', '.join(DATASETS)}, or a folder of images by class (default: {default})"
    parser.add_argument("--data", help=text)
    parser.add_argument(
        "--data-root", type=Path, metavar="FOLDER", help="where downloaded data lies (mnist, cifar10 and the like)"
    )
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="of shapes and of a folder's images")


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")


def split_validation(splits: Splits) -> tuple[Dataset, Dataset]:
    """Take a tenth of the training images for validation; the test images stay untouched."""
    count = max(1, round(VALIDATION_FRACTION * len(splits.train)))
    return stratified_split(splits.train, count, SPLIT_SEED)


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --set and --names: what a file of weights may not say."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a field of the configuration that the weights do not show, such as use_postln=False (may be repeated)",
    )
    parser.add_argument(
        "--names", type=Path, metavar="FILE", help="class names: one a line, or a JSON list or object by class number"
    )


WEIGHTS_HELP = (
    "a folder of Hugging Face or timm, or of a run (its best); a .safetensors, .pth or .bin file; "
    "official, Hugging Face, timm, Edifice or minifocal"
)


def open_weights(path: Path, args: argparse.Namespace) -> Pretrained:
    """Open weights as --set and --names say; print to standard error what a user should know about them."""
    pretrained = open_pretrained(path, **dict(map(_setting, args.set)))
    for warning in pretrained.warnings:
        print(f"minifocal {args.command}: {warning}", file=sys.stderr)
    if args.names is not None:
        names = read_class_names(args.names, pretrained.config.num_classes)
        pretrained = replace(pretrained, class_names=names)
    return pretrained


def _setting(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE: a number, True or False, numbers joined by commas, or a word."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set takes NAME=VALUE, such as use_postln=False, got {text!r}")
    try:
        return name, ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
    except (ValueError, SyntaxError):
        return name, value


def preprocess_of(pretrained: Pretrained) -> Preprocess:
    """Give how images are prepared for these weights.

    Raises:
        InputError: nobody knows.
    """
    if pretrained.preprocess is None:
        raise InputError(
            f"{pretrained.path} does not say how its images were prepared: it was not written by minifocal train"
        )
    return pretrained.preprocess


def class_names_of(pretrained: Pretrained) -> list[str]:
    """Give the names of the classes, or numbered ones where there are none; each fits into a line."""
    names = pretrained.class_names or [f"class {label}" for label in range(pretrained.config.num_classes)]
    return ["".join(letter if letter.isprintable() else " " for letter in name) for name in names]


def on_terminal() -> bool:
    """Whether a person sees a progress bar on standard error."""
    return sys.stderr.isatty()


def table(head: list[str], rows: list[list[str]]) -> str:
    """Lay out rows under a head: the first column to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: list[str]) -> str:
        first, *rest = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    return "\n".join(line(cells) for cells in [head, *rows])

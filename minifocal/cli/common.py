"""What several commands share: arguments, tables, models and data from files."""

import argparse
import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minifocal.data import DATASETS, Dataset, Splits
from minifocal.data.dataset import stratified_split
from minifocal.errors import InputError, check_option_names, one_line
from minifocal.interop import Preprocess, Pretrained, open_pretrained
from minifocal.interop.descriptions import read_class_names
from minifocal.interop.resolve import UnseenFieldsError
from minifocal.models.config import FocalNetConfig
from minifocal.training.ranks import RanksError
from minifocal.training.run_folder import CHECKPOINTS
from minifocal.training.trainer import TrainingError

RUNS = Path("runs")  # where train puts what has no --out
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


def progress_bar(total: int | None, unit: str) -> tqdm:
    """Make a progress bar that goes away in the end; it is seen on a terminal only."""
    return tqdm(total=total, unit=unit, disable=not on_terminal(), leave=False)


def split_validation(splits: Splits) -> tuple[Dataset, Dataset]:
    """Take a tenth of the training images for validation; the test images stay untouched."""
    count = max(1, round(VALIDATION_FRACTION * len(splits.train)))
    return stratified_split(splits.train, count, SPLIT_SEED)


WEIGHTS_HELP = (
    "weights: a folder of Hugging Face or timm, the folder of a run (its best checkpoint), or a .safetensors, .pth or "
    ".bin file of minifocal, the official code, Hugging Face, timm or Edifice"
)


def add_settings_argument(parser: argparse.ArgumentParser) -> None:
    """Add --set: fields of the configuration."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a field of the network's configuration, such as use_postln=False (may be repeated)",
    )


def add_names_argument(parser: argparse.ArgumentParser) -> None:
    """Add --names: what classes are called."""
    parser.add_argument(
        "--names", type=Path, metavar="FILE", help="class names: one a line, or a JSON list or object by class number"
    )


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Read what --set was given: each a number, True or False, numbers joined by commas, or a word.

    Raises:
        InputError: one of them is no NAME=VALUE.
    """
    fields = {}
    for text in args.set:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"--set takes NAME=VALUE, such as use_postln=False, got {text[:60]!r}")
        try:
            fields[name] = ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # no literal: a word
            fields[name] = value
        if name in ("depths", "focal_levels", "focal_windows") and isinstance(fields[name], int):
            fields[name] = (fields[name],)
    return fields


def network_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Read --set where it takes fields of FocalNetConfig. Raises InputError also for a field that does not exist."""
    fields = settings(args)
    check_option_names(fields, FocalNetConfig.__dataclass_fields__)
    return fields


def open_weights(path: Path, args: argparse.Namespace) -> Pretrained:
    """Open weights as --set says; print to standard error what a user should know about them.

    Raises:
        InputError: as open_pretrained; where fields have to be given, it says how.
    """
    try:
        pretrained = open_pretrained(path, **network_settings(args))
    except UnseenFieldsError as error:
        values = {name: ",".join(map(str, v)) if isinstance(v, tuple) else v for name, v in error.fields.items()}
        options = " ".join(f"--set {name}={value}" for name, value in values.items())
        raise InputError(f"{error}; for example {options}") from error
    for warning in pretrained.warnings:
        print(f"minifocal {args.command}: {warning}", file=sys.stderr)
    return pretrained


def preprocess_of(pretrained: Pretrained, args: argparse.Namespace) -> Preprocess:
    """Give how images are prepared for these weights; print to standard error what is assumed.

    Raises:
        InputError: the weights do not say it.
    """
    if pretrained.preprocess is None:
        raise InputError(
            f"{pretrained.path} does not say how its images were prepared: it was not written by minifocal train; "
            "write it with minifocal.interop.save_pretrained(..., preprocess=...)"
        )
    if pretrained.preprocess_is_assumed:
        print(f"minifocal {args.command}: images as usual: {pretrained.preprocess.describe()}", file=sys.stderr)
    return pretrained.preprocess


def check_classifier(pretrained: Pretrained) -> None:
    """Refuse weights that cannot name classes.

    Raises:
        InputError: there is no classifier, or one that has learned nothing.
    """
    if not pretrained.config.num_classes:
        raise InputError(f"{pretrained.path} has no classifier: it gives features, not classes")
    if pretrained.new_classifier:
        raise InputError(f"{pretrained.path} has another number of classes; a new classifier has to be trained first")


def class_names_of(pretrained: Pretrained, args: argparse.Namespace) -> list[str]:
    """Give the names of the classes, those in --names first, or numbers where there are none; each fits into a line."""
    names: Sequence[str] | None = pretrained.class_names
    if args.names is not None:
        names = read_class_names(args.names, pretrained.config.num_classes)
    names = names or [f"class {label}" for label in range(pretrained.config.num_classes)]
    return list(map(one_line, names))


def newest_run(files: Sequence[str] = CHECKPOINTS) -> Path | None:
    """Give the folder under runs in which one of some files was written last, if there is one."""
    found = [path for name in files for path in RUNS.glob(f"*/{name}")]
    return max(found, key=lambda path: path.stat().st_mtime).parent if found else None


def on_terminal() -> bool:
    """Whether a person sees a progress bar on standard error."""
    return sys.stderr.isatty()


def table(head: list[str], rows: list[list[str]], left: int = 1) -> str:
    """Lay out rows under a head: the first `left` columns to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: list[str]) -> str:
        padded = (
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    return "\n".join(line(cells) for cells in [head, *rows])


def failure(error: BaseException) -> tuple[str, int] | None:
    """Give the line for a person, and the exit status, for an error that is none of the program's own; else None."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, TrainingError | RanksError):
        return str(error), 1
    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}; make the network, the images or the batch smaller", 2
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or 'the output'}", 2
    return None

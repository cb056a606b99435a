"""What several commands share: arguments, tables, models and data from files."""

import argparse
import sys
from pathlib import Path
from typing import Any

from minifocal.data import DATASETS, Dataset, Splits
from minifocal.data.dataset import Standardize, stratified_split
from minifocal.errors import InputError
from minifocal.models.focalnet import FocalNet
from minifocal.training.checkpoint import Checkpoint, load_checkpoint
from minifocal.training.trainer import BEST, LAST

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


def find_checkpoint(path: Path) -> Path:
    """Give the file of a checkpoint; of a run's folder the best one, or the last where there is no best yet."""
    if path.is_dir():
        found = [path / name for name in (BEST, LAST) if (path / name).is_file()]
        if not found:
            raise InputError(f"{path} holds no checkpoint; give a file, or the folder of a run")
        return found[0]
    return path


def load_model(path: Path, device: str) -> tuple[FocalNet, Checkpoint]:
    """Read a checkpoint, or the best one of a run's folder, and build its network."""
    checkpoint = load_checkpoint(find_checkpoint(path))
    return FocalNet.from_checkpoint(checkpoint, device=device), checkpoint


def trained_standardize(checkpoint: Checkpoint) -> Standardize:
    """Give the scaling of pixels that a checkpoint was trained with."""
    return Standardize.from_dict(training_meta(checkpoint, "standardize"))


def trained_class_names(checkpoint: Checkpoint) -> list[str]:
    """Give the class names that a checkpoint was trained with."""
    return [str(name) for name in training_meta(checkpoint, "class_names")]


def training_meta(checkpoint: Checkpoint, name: str) -> Any:
    """Give something else that `minifocal train` stored in a checkpoint."""
    if name not in checkpoint.meta:
        raise InputError(f"{checkpoint.path} was not written by minifocal train: it does not say its {name}")
    return checkpoint.meta[name]


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

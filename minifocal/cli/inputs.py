"""One image through one checkpoint, for the commands that look into a network: what they are given, and opened."""

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minifocal.cli.common import (
    RUNS,
    WEIGHTS_HELP,
    add_names_argument,
    add_settings_argument,
    check_classifier,
    class_names_of,
    newest_run,
    open_weights,
    preprocess_of,
)
from minifocal.data import DATASETS, Dataset, load_splits, make_shapes
from minifocal.data.shapes import TEST_IMAGES, TRAIN_IMAGES
from minifocal.errors import InputError, check_integer, one_line
from minifocal.interop import Preprocess, Pretrained

IMAGE_HELP = "a file that Pillow reads, or a test image by name and number, such as digits:12 or shapes:3"


@dataclass(frozen=True)
class InputImage:
    """One image, ready for a network.

    Attributes:
        images: (1, channels, height, width), standardised, on the host.
        pixels: the same before that, (channels, height, width) from 0 to 1: to be looked at.
        name: as the user gave it, in one line.
        label: what it shows, where that is known.
    """

    images: np.ndarray
    pixels: np.ndarray
    name: str
    label: str | None = None


def add_input_arguments(parser: argparse.ArgumentParser, class_help: str) -> None:
    """Add the image, the checkpoint, and how the one goes into the other."""
    parser.add_argument("image", metavar="IMAGE", help=IMAGE_HELP)
    parser.add_argument("--checkpoint", type=Path, help=f"{WEIGHTS_HELP} (default: the newest run under {RUNS})")
    parser.add_argument("--class", dest="wanted", metavar="CLASS", help=class_help)
    parser.add_argument("--invert", action="store_true", help="dark ink on light paper: the digits are light on dark")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="bring the image to another size")
    add_names_argument(parser)
    add_settings_argument(parser)


@dataclass(frozen=True)
class OpenedInput:
    """A checkpoint, what its classes are called (nothing without a classifier), and how it takes images."""

    pretrained: Pretrained
    names: list[str]
    preprocess: Preprocess
    args: argparse.Namespace

    def image(self, dtype: str) -> InputImage:
        """Read the image for a network of a dtype."""
        return read_input(self.args.image, self.preprocess, dtype, invert=self.args.invert)

    @property
    def wanted(self) -> int | None:
        """The class that was asked for; None for none."""
        return None if self.args.wanted is None else find_class(self.args.wanted, self.names)


def open_input(args: argparse.Namespace) -> OpenedInput:
    """Open the checkpoint of a command that has add_input_arguments.

    Raises:
        InputError: there is no checkpoint, it cannot be read or names no classes that were asked for.
    """
    if args.image_size is not None:
        check_integer("--image-size", args.image_size, at_least=1)
    pretrained = open_weights(checkpoint_of(args), args)
    names: list[str] = []
    if pretrained.config.num_classes:
        check_classifier(pretrained)
        names = class_names_of(pretrained, args)
    elif args.wanted is not None:
        raise InputError(f"{pretrained.path} has no classifier: there is no class to explain; leave --class out")
    preprocess = preprocess_of(pretrained, args)
    if args.image_size is not None:
        preprocess = preprocess.at_size(args.image_size)
    return OpenedInput(pretrained, names, preprocess, args)


def check_output(option: str, out: Path, image: str) -> None:
    """Refuse to write over the image, or a file where a folder is.

    Raises:
        InputError: both are one file, or out is a folder.
    """
    if out.is_dir():
        raise InputError(f"{option} takes a file and {out} is a folder: name a file in it")
    try:
        same = out.samefile(image)
    except (OSError, ValueError):  # one of them does not exist, or could not
        same = False
    if same:
        raise InputError(f"{option} is the image itself, {out}: choose another name")


def checkpoint_of(args: argparse.Namespace) -> Path:
    """Give --checkpoint, or the newest run without it.

    Raises:
        InputError: there is neither.
    """
    folder: Path | None = args.checkpoint or newest_run()
    if folder is None:
        raise InputError(f"there is no run under {RUNS}: run minifocal train first, or give --checkpoint")
    return folder


def find_class(text: str, names: Sequence[str]) -> int:
    """Give the class that a user means: its name, one of the names that commas part, or its number.

    Raises:
        InputError: there is none, with the names that come close, or there are several.
    """
    wanted = text.strip().casefold()
    for spellings in ([{name.casefold()} for name in names], [_spellings(name) for name in names]):
        found = [label for label, own in enumerate(spellings) if wanted in own]
        if len(found) > 1:
            numbers = ", ".join(map(str, found[:8]))
            raise InputError(f"classes {numbers} are all called {one_line(text)[:60]!r}: give the number of one")
        if found:
            return found[0]
    if wanted.isdecimal() and len(wanted) < 10 and int(wanted) < len(names):
        return int(wanted)
    by_spelling = {spelling: name for name in names for spelling in _spellings(name)}
    close = [by_spelling[found] for found in difflib.get_close_matches(wanted, list(by_spelling), n=5)]
    first = f"the {'first ' if len(names) > 10 else ''}classes are {', '.join(names[:10])}"
    shown = f"did you mean {' or '.join(dict.fromkeys(close))}" if close else first
    raise InputError(f"there is no class {one_line(text)[:60]!r}: {shown}; or give a number, 0 to {len(names) - 1}")


def _spellings(name: str) -> set[str]:
    return {part.strip() for part in name.casefold().split(",")}


def read_input(spec: str, preprocess: Preprocess, dtype: str, *, invert: bool = False) -> InputImage:
    """Read an image from a file, or take a test image of a data set.

    A name goes before a path: write ./digits:12 for a file called digits:12.

    Args:
        spec: the path of a file, or the name of a data set and the number of a test image, "digits:12".
        preprocess: how the network expects images; those of a data set keep the size that they have.
        dtype: of the network.
        invert: take the negative first.
    Raises:
        InputError: no such image, or one with other channels than the network takes.
    """
    data, colon, index = spec.partition(":")
    label, most = None, 255.0
    if colon and data in DATASETS:
        dataset, place = _test_image(data, index, preprocess.crop)
        pixels, most = dataset.images[place], dataset.max_value
        label = one_line(dataset.class_names[dataset.labels[place]])
        channels = len(preprocess.standardize.mean)
        if len(pixels) != channels:
            raise InputError(
                f"images of {data} have {len(pixels)} channels and the weights take {channels}; give another image"
            )
    else:
        pixels = preprocess.read_pixels(spec)
    if invert:
        pixels = (most - pixels).astype(pixels.dtype)
    return InputImage(preprocess.standardize(pixels[None], most, dtype), pixels / most, one_line(spec), label)


def input_stem(spec: str) -> str:
    """Give the name of an image without folder and suffix, for the file that is made of it: "digits-12", "cat"."""
    data, colon, index = spec.partition(":")
    return f"{data}-{index}" if colon and data in DATASETS else Path(spec).stem


def _test_image(data: str, index: str, size: int) -> tuple[Dataset, int]:
    """Give images that hold the test image of a number, and its place among them."""
    test = None if data == "shapes" else load_splits(data).test
    count = TEST_IMAGES if test is None else len(test)
    if not (index.isdecimal() and len(index) < 10 and int(index) < count):
        raise InputError(f"{data} has test images {data}:0 to {data}:{count - 1}, got {one_line(index)[:60]!r}")
    if test is None:  # made for itself: all of them would take long at a large size
        return make_shapes(1, size, start=TRAIN_IMAGES + int(index)), 0
    return test, int(index)

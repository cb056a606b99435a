"""`minifocal predict`: the most likely classes of images."""

import argparse
import math
from pathlib import Path

from minifocal.arrays import as_numpy, to_device
from minifocal.cli.common import add_device_argument, load_model, trained_class_names, trained_standardize
from minifocal.data.folder import read_image
from minifocal.errors import check_integer
from minifocal.functional.cross_entropy import log_softmax

HELP = "name the most likely classes of images"
EXAMPLE = "minifocal predict five.png --checkpoint runs/digits --invert"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the images and the checkpoint."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="files that Pillow reads")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a file, or the folder of a run (its best)")
    parser.add_argument("--top", type=int, default=3, metavar="K", help="classes to name (default: 3)")
    parser.add_argument("--invert", action="store_true", help="dark ink on light paper: the digits are light on dark")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print a line for each image."""
    check_integer("--top", args.top, at_least=1)
    model, checkpoint = load_model(args.checkpoint, args.device)
    standardize, names = trained_standardize(checkpoint), trained_class_names(checkpoint)
    for path in args.images:
        pixels = read_image(path, size=model.config.image_hw[0], channels=model.config.in_chans)[None]
        images = standardize(255 - pixels if args.invert else pixels, 255.0, model.dtype)
        log_probabilities = as_numpy(log_softmax(model(to_device(images, args.device))))[0].tolist()
        best = sorted(zip(log_probabilities, names, strict=True), reverse=True)[: args.top]
        print(f"{path}: " + ", ".join(f"{name} {100 * math.exp(value):.1f} %" for value, name in best))
    return 0

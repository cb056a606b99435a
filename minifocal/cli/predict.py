"""`minifocal predict`: the most likely classes of images."""

import argparse
import math
from pathlib import Path

from minifocal.arrays import as_numpy, to_device
from minifocal.cli.common import (
    WEIGHTS_HELP,
    add_device_argument,
    add_names_argument,
    add_settings_argument,
    check_classifier,
    class_names_of,
    open_weights,
    preprocess_of,
)
from minifocal.errors import check_integer
from minifocal.functional.cross_entropy import log_softmax

HELP = "name the most likely classes of images"
EXAMPLE = "minifocal predict five.png --checkpoint runs/digits --invert"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the images and the checkpoint."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="files that Pillow reads")
    parser.add_argument("--checkpoint", type=Path, required=True, help=WEIGHTS_HELP)
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes to name (default: 5)")
    parser.add_argument("--invert", action="store_true", help="dark ink on light paper: the digits are light on dark")
    add_names_argument(parser)
    add_settings_argument(parser)
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print a line for each image."""
    check_integer("--top", args.top, at_least=1)
    pretrained = open_weights(args.checkpoint, args)
    check_classifier(pretrained)
    preprocess, names = preprocess_of(pretrained, args), class_names_of(pretrained, args)
    model = pretrained.build(device=args.device)
    for path in args.images:
        images = preprocess.read(path, model.dtype, invert=args.invert)
        log_probabilities = as_numpy(log_softmax(model(to_device(images, args.device))))[0].tolist()
        best = sorted(zip(log_probabilities, names, strict=True), reverse=True)[: args.top]
        print(f"{path}: " + "; ".join(f"{100 * math.exp(value):.1f} % {name}" for value, name in best))
    return 0

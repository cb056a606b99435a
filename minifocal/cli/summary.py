"""`minifocal summary`: a network by layer."""

import argparse
from pathlib import Path

from minifocal.cli.common import WEIGHTS_HELP, add_weights_arguments, open_weights
from minifocal.models.focalnet import FocalNet
from minifocal.models.zoo import create_model

HELP = "show a network by layer: output shape, parameters, multiply-adds, cache memory"
EXAMPLE = "minifocal summary focalnet_tiny_srf --image-size 224"

BUILD = "build"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the network."""
    parser.add_argument(
        "model",
        nargs="?",
        default=BUILD,
        help=f"a variant (see minifocal models), build (FocalNet.build, the default), or weights: {WEIGHTS_HELP}",
    )
    add_weights_arguments(parser)
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="height and width (default: the network's)")


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    if args.model == BUILD:
        model = FocalNet.build(init="zeros")
    elif Path(args.model).suffix or Path(args.model).exists():
        model = open_weights(Path(args.model), args).build()
    else:
        model = create_model(args.model, init="zeros")
    print(model.summary(args.image_size))
    return 0

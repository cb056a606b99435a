"""`minifocal summary`: a network by layer."""

import argparse
from pathlib import Path

from minifocal.cli.common import load_model
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
        help="a variant, a checkpoint (.safetensors, or a path with a /), or build (FocalNet.build, the default)",
    )
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="height and width (default: the network's)")


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    if args.model == BUILD:
        model = FocalNet.build(init="zeros")
    elif args.model.endswith(".safetensors") or "/" in args.model:
        model, _ = load_model(Path(args.model), "cpu")
    else:
        model = create_model(args.model, init="zeros")
    print(model.summary(args.image_size))
    return 0

"""`minifocal summary`: a network by layer."""

import argparse
from pathlib import Path

from minifocal.cli.common import WEIGHTS_HELP, add_settings_argument, network_settings, open_weights, settings
from minifocal.errors import check_option_names
from minifocal.models.focalnet import BUILD_DEFAULTS, FocalNet
from minifocal.models.zoo import create_model, list_models

HELP = "show a network by layer: output shape, parameters, multiply-adds, cache memory"
EXAMPLE = "minifocal summary focalnet_tiny_srf --image-size 224"

BUILD = "build"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the network."""
    parser.add_argument(
        "model",
        nargs="?",
        default=BUILD,
        help=f"a variant (see minifocal models), build (FocalNet.build, the default), or {WEIGHTS_HELP}",
    )
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="height and width (default: the network's)")
    add_settings_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print the table. A name goes before a path: write ./build for a file called build."""
    if args.model == BUILD:
        options = settings(args)
        check_option_names(options, BUILD_DEFAULTS)
        model = FocalNet.build(**{"init": "zeros", **options})
    elif args.model in list_models() or (not Path(args.model).suffix and not Path(args.model).exists()):
        model = create_model(args.model, init="zeros", **network_settings(args))
    else:
        model = FocalNet(open_weights(Path(args.model), args).config, init="zeros")
    print(model.summary(args.image_size))
    return 0

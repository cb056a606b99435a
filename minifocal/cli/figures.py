"""`minifocal figures`: draw every file in figures/ again."""

import argparse
from pathlib import Path

from minifocal.models.zoo import create_model
from minifocal.viz.pictures import draw_architecture

HELP = "draw the pictures of the README again"
EXAMPLE = "minifocal figures --out figures"

ARCHITECTURE = "architecture.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder."""
    parser.add_argument("--out", type=Path, default=Path("figures"), metavar="FOLDER", help="default: figures")


def run(args: argparse.Namespace) -> int:
    """Draw, and say what was drawn."""
    path = args.out / ARCHITECTURE
    draw_architecture(create_model("focalnet_tiny_srf", init="zeros"), path)
    print(path)
    return 0

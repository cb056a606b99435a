"""`minifocal figures`: draw every file in figures/ again."""

import argparse
from pathlib import Path

from minifocal.bench import report, scaling
from minifocal.models.zoo import create_model
from minifocal.viz.pictures import draw_architecture
from minifocal.viz.speed_pictures import draw_scaling, draw_speeds

HELP = "draw the pictures of the README again"
EXAMPLE = "minifocal figures --out figures"

ARCHITECTURE = "architecture.png"
SPEEDS, SCALING = "bench.json", "scaling.json"  # what minifocal bench measured, kept beside the pictures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder."""
    parser.add_argument("--out", type=Path, default=Path("figures"), metavar="FOLDER", help="default: figures")


def run(args: argparse.Namespace) -> int:
    """Draw, and say what was drawn."""
    path = args.out / ARCHITECTURE
    draw_architecture(create_model("focalnet_tiny_srf", init="zeros"), path)
    print(path)
    if (results := args.out / SPEEDS).exists():
        draw_speeds(*report.read_json(results, report.speeds), results.with_suffix(".png"))
        print(results.with_suffix(".png"))
    if (results := args.out / SCALING).exists():
        draw_scaling(report.read_json(results, scaling.scaling_series), results.with_suffix(".png"))
        print(results.with_suffix(".png"))
    return 0

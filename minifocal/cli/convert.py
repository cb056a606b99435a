"""`minifocal convert`: weights from one implementation to another."""

import argparse
import os
from pathlib import Path

from minifocal.arrays import FLOAT_DTYPES
from minifocal.cli.common import (
    WEIGHTS_HELP,
    add_names_argument,
    add_settings_argument,
    class_names_of,
    open_weights,
)
from minifocal.errors import InputError
from minifocal.interop import LAYOUTS
from minifocal.interop.export import changes_of_function, check_exportable, write_pretrained
from minifocal.interop.layouts import renamings

HELP = "convert weights between minifocal, the official code, Hugging Face, timm and Edifice"
EXAMPLE = "minifocal convert focalnet_tiny_lrf.pth focalnet-tiny-lrf --layout hf"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the files and the layout."""
    parser.add_argument("source", type=Path, metavar="SRC", help=WEIGHTS_HELP)
    parser.add_argument(
        "target", type=Path, metavar="DST", help="a folder for hf; a .pth or .safetensors file for the others"
    )
    parser.add_argument("--layout", required=True, choices=LAYOUTS, help="whose names and shapes to write")
    parser.add_argument(
        "--dtype", choices=FLOAT_DTYPES, help="of the numbers (default: as they are; halves become float32)"
    )
    add_names_argument(parser)
    add_settings_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Convert, and print what was found out and what was changed."""
    empty_folder = args.target.is_dir() and not any(args.target.iterdir())
    if os.path.lexists(args.target) and not empty_folder:
        raise InputError(f"{args.target} is there already; remove it, or choose another name")
    pretrained = open_weights(args.source, args)
    check_exportable(pretrained.config, args.target, args.layout)
    print(f"read {pretrained.path}")
    for line in pretrained.inferred:
        print(f"  {line}")
    model = pretrained.build(dtype=args.dtype)
    names = class_names_of(pretrained, args) if args.names else pretrained.class_names
    write_pretrained(model, args.target, args.layout, names, pretrained.preprocess)
    print(f"wrote {args.target}: {model.count_parameters():,} numbers in {model.dtype}, layout {args.layout}")
    for change in changes_of_function(model.config, args.layout):
        print(f"  {change}")
    if lines := renamings(model, pretrained.layout, args.layout):
        print("changed, where {s} is a stage, {b} a block and {l} a level (shapes are those of the first):")
        print(*(f"  {line}" for line in lines), sep="\n")
    return 0

"""`minifocal convert`: weights from one implementation to another."""

import argparse
from pathlib import Path

from minifocal.arrays import FLOAT_DTYPES
from minifocal.cli.common import WEIGHTS_HELP, add_weights_arguments, open_weights
from minifocal.errors import InputError
from minifocal.interop import LAYOUTS
from minifocal.interop.export import changes_of_function, check_exportable, write_pretrained
from minifocal.interop.layouts import find_place, stored_parameters, to_stored
from minifocal.models.focalnet import FocalNet

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
    add_weights_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Convert, and print what was found out and what was changed."""
    if args.target.is_file() or (args.target.is_dir() and any(args.target.iterdir())):
        raise InputError(f"{args.target} is there already; remove it, or choose another name")
    pretrained = open_weights(args.source, args)
    check_exportable(pretrained.config, args.target, args.layout)
    print(f"read {pretrained.path}")
    for line in pretrained.inferred:
        print(f"  {line}")
    model = pretrained.build(dtype=args.dtype)
    write_pretrained(model, args.target, args.layout, pretrained.class_names, pretrained.preprocess)
    print(f"wrote {args.target}: {model.count_parameters():,} numbers in {model.dtype}, layout {args.layout}")
    for change in changes_of_function(model.config, args.layout):
        print(f"  {change}")
    if lines := _changes(model, pretrained.layout, args.layout):
        print("changed, where {s} is a stage, {b} a block and {l} a level:")
        print(*lines, sep="\n")
    return 0


def _changes(model: FocalNet, source: str, target: str) -> list[str]:
    """Give a line for each part of the table whose name or whose weights' shape differs between two layouts."""
    changes: dict[str, tuple[str, str, str]] = {}
    pairs = zip(stored_parameters(model, source), stored_parameters(model, target), strict=True)
    for old, new in pairs:
        place = find_place(new.name, target)
        assert place is not None
        names = [_pattern(place.row.name(layout), model.config.use_postln) for layout in (source, target)]
        shapes = [
            to_stored(one.parameter.data, one.kind, one.in_dim, layout).shape
            for one, layout in ((old, source), (new, target))
        ]
        reshaped = f"  {shapes[0]} → {shapes[1]}" if shapes[0] != shapes[1] else ""
        if names[0] != names[1] or reshaped:
            changes.setdefault(place.row.ours, (names[0], names[1], reshaped))
    width = max((len(old) for old, _, _ in changes.values()), default=0)
    return [f"  {old:{width}} → {new}{reshaped}" for old, new, reshaped in changes.values()]


def _pattern(name: str | None, use_postln: bool) -> str:
    assert name is not None
    return name.replace("{post}", "_post" if use_postln else "").replace("{next}", "{s+1}")

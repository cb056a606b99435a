"""`minifocal explain`: one picture of what a network does with an image, and the same in numbers."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minifocal.arrays import to_device
from minifocal.cli.common import (
    IMAGE_HELP,
    RUNS,
    WEIGHTS_HELP,
    InputImage,
    add_device_argument,
    add_names_argument,
    add_settings_argument,
    check_classifier,
    class_names_of,
    find_class,
    input_stem,
    newest_run,
    open_weights,
    preprocess_of,
    read_input,
    table,
)
from minifocal.errors import InputError, check_integer
from minifocal.viz.canvas import check_picture_path
from minifocal.viz.explain import Explanation, explain
from minifocal.viz.explain_picture import ALL, LAST, LIKELIEST, chosen_blocks, draw_explanation, number, percent

HELP = "draw what a network does with an image: gates and modulators of every block, and where a class comes from"
EXAMPLE = "minifocal explain digits:12 --checkpoint runs/digits --out twelve.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the image, the checkpoint and the picture."""
    parser.add_argument("image", metavar="IMAGE", help=IMAGE_HELP)
    parser.add_argument("--checkpoint", type=Path, help=f"{WEIGHTS_HELP} (default: the newest run under {RUNS})")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the picture, .png or .svg (default: IMAGE-explained.png, here)"
    )
    parser.add_argument(
        "--class",
        dest="wanted",
        metavar="CLASS",
        help="name or number of the class (default: the likeliest)",
    )
    parser.add_argument(
        "--blocks",
        choices=(ALL, LAST),
        help="draw all blocks, or the last of each stage (default: all, of more than 12 the last)",
    )
    parser.add_argument("--invert", action="store_true", help="dark ink on light paper: the digits are light on dark")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="bring the image to another size")
    add_names_argument(parser)
    add_settings_argument(parser)
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Draw the picture; print what it shows in numbers, and its path last."""
    out = _picture_path(args)
    if args.image_size is not None:
        check_integer("--image-size", args.image_size, at_least=1)
    pretrained = open_weights(_checkpoint(args), args)
    names: list[str] = []
    if pretrained.config.num_classes:
        check_classifier(pretrained)
        names = class_names_of(pretrained, args)
    elif args.wanted is not None:
        raise InputError(f"{pretrained.path} has no classifier: there is no class to explain; leave --class out")
    label = None if args.wanted is None else find_class(args.wanted, names)
    preprocess = preprocess_of(pretrained, args)
    if args.image_size is not None:
        preprocess = preprocess.at_size(args.image_size)
    image = read_input(args.image, preprocess, pretrained.dtype, invert=args.invert)
    model = pretrained.build(device=args.device)
    explanation = explain(model, to_device(image.images, args.device), label)
    title = image.name if image.label is None else f"{image.name}, labelled {image.label}"
    draw_explanation(
        explanation,
        image.pixels,
        out,
        names=names,
        modulation=model.config.modulation,
        title=title,
        blocks=args.blocks,
    )
    height, width = image.pixels.shape[1:]
    print(f"image: {title}, {height} × {width} pixels")
    print(f"network: {model.config.modulation}, {pretrained.path}")
    _print_class(explanation, names, image)
    print(_block_table(explanation))
    drawn = len(chosen_blocks(explanation.blocks, args.blocks))
    if drawn < len(explanation.blocks):
        more = "" if args.blocks else "; --blocks all draws them all"
        print(f"drawn: {drawn} of {len(explanation.blocks)} blocks, the last of each stage{more}")
    print(f"picture: {out}")
    return 0


def _picture_path(args: argparse.Namespace) -> Path:
    """Give the path of the picture: never that of the image."""
    out: Path = args.out or Path(f"{input_stem(args.image)}-explained.png")
    check_picture_path(out)
    try:
        same = out.samefile(args.image)
    except (OSError, ValueError):  # one of them does not exist, or could not
        same = False
    if same:
        raise InputError(f"--out is the image itself, {out}: choose another name")
    return out


def _checkpoint(args: argparse.Namespace) -> Path:
    if args.checkpoint is not None:
        return Path(args.checkpoint)
    folder = newest_run()
    if folder is None:
        raise InputError(f"there is no run under {RUNS}: run minifocal train first, or give --checkpoint")
    return folder


def _print_class(explanation: Explanation, names: Sequence[str], image: InputImage) -> None:
    """Print the likeliest classes, and where the maps of the explained one are largest."""
    of_class, probabilities = explanation.of_class, explanation.probabilities
    if of_class is None or probabilities is None:
        print("no classifier: there is no class to explain, so gates and modulators only")
        return
    likeliest = explanation.likeliest(LIKELIEST)
    print("classes: " + "; ".join(f"{percent(probabilities[label])} {names[label]}" for label in likeliest))
    print(f"explained: {names[of_class.label]}, {percent(probabilities[of_class.label])}")
    for cam in of_class.cams:
        rows, columns = cam.values.shape
        name = f"Grad-CAM, stage {cam.stage + 1}, {rows} × {columns} tokens"
        print(f"{name}: {_largest(cam.values, 'speaks for the class', 'nothing')}")
    print(f"input gradient: {_largest(of_class.input_gradient, 'largest', 'zero everywhere')}")


def _largest(values: np.ndarray, verb: str, nothing: str) -> str:
    """Say where a map is largest, counted from 1 and from the upper left corner."""
    row, column = np.unravel_index(values.argmax(), values.shape)
    if values[row, column] == 0:
        return nothing
    return f"{verb} {number(float(values[row, column]))} at row {row + 1}, column {column + 1}"


def _block_table(explanation: Explanation) -> str:
    """Give the mean over tokens of every map, a row for each block."""
    names = list(dict.fromkeys(shown.name for block in explanation.blocks for shown in block.maps))
    rows = []
    for block in explanation.blocks:
        means = {shown.name: number(float(shown.values.mean())) for shown in block.maps}
        rows.append([block.name, *(means.get(name, "") for name in names)])
    return table(["mean over tokens", *names], rows)

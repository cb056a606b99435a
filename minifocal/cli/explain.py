"""`minifocal explain`: one picture of what a network does with an image, and the same in numbers."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minifocal.arrays import to_device
from minifocal.cli.common import add_device_argument, table
from minifocal.cli.inputs import InputImage, add_input_arguments, check_output, input_stem, open_input
from minifocal.viz.canvas import check_picture_path
from minifocal.viz.explain import Explanation, explain
from minifocal.viz.explain_picture import ALL, LAST, LIKELIEST, chosen_blocks, draw_explanation, number, percent

HELP = "draw what a network does with an image: gates and modulators of every block, and where a class comes from"
EXAMPLE = "minifocal explain digits:12 --checkpoint runs/digits --out twelve.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the image, the checkpoint and the picture."""
    add_input_arguments(parser, "name or number of the class (default: the likeliest)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the picture, .png or .svg (default: IMAGE-explained.png, here)"
    )
    parser.add_argument(
        "--blocks",
        choices=(ALL, LAST),
        help="draw all blocks, or the last of each stage (default: all, of more than 12 the last)",
    )
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Draw the picture; print what it shows in numbers, and its path last."""
    out: Path = args.out or Path(f"{input_stem(args.image)}-explained.png")
    check_picture_path(out)
    check_output("--out", out, args.image)
    opened = open_input(args)
    names, label = opened.names, opened.wanted
    image = opened.image(opened.pretrained.dtype)
    model = opened.pretrained.build(device=args.device)
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
    print(f"network: {model.config.modulation}, {opened.pretrained.path}")
    _print_class(explanation, names, image)
    print(_block_table(explanation))
    drawn = len(chosen_blocks(explanation.blocks, args.blocks))
    if drawn < len(explanation.blocks):
        more = "" if args.blocks else "; --blocks all draws them all"
        print(f"drawn: {drawn} of {len(explanation.blocks)} blocks, the last of each stage{more}")
    print(f"picture: {out}")
    return 0


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
        print(f"{name}: {_largest(cam.values)}")
    print(f"input gradient: {_largest(of_class.input_gradient)}")


def _largest(values: np.ndarray) -> str:
    """Say where a map is largest, counted from 1 and from the upper left corner."""
    row, column = np.unravel_index(values.argmax(), values.shape)
    if values[row, column] == 0:
        return "zero everywhere"
    return f"largest {number(float(values[row, column]))} at row {row + 1}, column {column + 1}"


def _block_table(explanation: Explanation) -> str:
    """Give the mean over tokens of every map, a row for each block."""
    names = list(dict.fromkeys(shown.name for block in explanation.blocks for shown in block.maps))
    rows = []
    for block in explanation.blocks:
        means = {shown.name: number(float(shown.values.mean())) for shown in block.maps}
        rows.append([block.name, *(means.get(name, "") for name in names)])
    return table(["mean over tokens", *names], rows)

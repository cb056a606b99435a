"""`minifocal trace`: a page that steps through one forward and backward pass, operation by operation."""

import argparse
from pathlib import Path

import numpy as np

from minifocal.cli.common import (
    IMAGE_HELP,
    RUNS,
    WEIGHTS_HELP,
    add_names_argument,
    add_settings_argument,
    check_classifier,
    checkpoint_of,
    class_names_of,
    find_class,
    open_weights,
    preprocess_of,
    progress_bar,
    read_input,
)
from minifocal.errors import InputError, check_integer
from minifocal.files import write_bytes
from minifocal.viz.recorder import record
from minifocal.viz.trace import make_trace
from minifocal.viz.trace_page import trace_html

HELP = "write a page that steps through a forward and a backward pass, operation by operation"
EXAMPLE = "minifocal trace digits:12 --checkpoint runs/digits --html twelve.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the image, the checkpoint and the page."""
    parser.add_argument("image", metavar="IMAGE", help=IMAGE_HELP)
    parser.add_argument("--html", type=Path, required=True, metavar="OUT", help="the page: one file, for any browser")
    parser.add_argument("--checkpoint", type=Path, help=f"{WEIGHTS_HELP} (default: the newest run under {RUNS})")
    parser.add_argument(
        "--class",
        dest="wanted",
        metavar="CLASS",
        help="name or number of the class of the loss (default: what the image is known to show, else the likeliest)",
    )
    parser.add_argument("--invert", action="store_true", help="dark ink on light paper: the digits are light on dark")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="bring the image to another size")
    add_names_argument(parser)
    add_settings_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Record the pass, check its gradients and write the page; print its path last."""
    out: Path = args.html
    if out.exists() and Path(args.image).exists() and out.samefile(args.image):
        raise InputError(f"--html is the image itself, {out}: choose another name")
    if args.image_size is not None:
        check_integer("--image-size", args.image_size, at_least=1)
    pretrained = open_weights(checkpoint_of(args), args)
    check_classifier(pretrained)
    names = class_names_of(pretrained, args)
    preprocess = preprocess_of(pretrained, args)
    if args.image_size is not None:
        preprocess = preprocess.at_size(args.image_size)
    image = read_input(args.image, preprocess, "float64", invert=args.invert)
    # What is shown is the code that a reader reads, in the precision in which its gradients can be checked.
    model = pretrained.build(dtype="float64", ops="reference")
    likeliest = int(model(image.images)[0].argmax())
    if args.wanted is not None:
        label = find_class(args.wanted, names)
    else:
        label = names.index(image.label) if image.label in names else likeliest
    recording = record(model, image.images, np.array([label]))
    calls = sum(1 for _ in recording.walk())
    with progress_bar(calls, "step") as bar:
        trace = make_trace(recording, image.images, image.pixels, label, names, image.name, on_step=bar.update)
    page = trace_html(trace)
    write_bytes(out, page.encode("utf-8"))
    checks = [shown["check"] for step in trace.steps for shown in step["out"] if shown.get("check")]
    compared = sum(len(check["rows"]) for check in checks)
    print(f"image: {image.name}, class {names[label]}, loss {recording.loss:.4f}; likeliest {names[likeliest]}")
    print(f"steps: {calls}, of them {sum(1 for step in trace.steps if step['way'] == 'backward')} on the way back")
    print(
        f"gradients: {len(checks)} arrays, {compared} of their elements checked; largest relative error "
        f"{max(check['error'] for check in checks):.1e}"
    )
    print(f"page: {out}, {len(page) / 1e6:.1f} MB; open it in a browser")
    return 0

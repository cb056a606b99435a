"""`minifocal trace`: a page that steps through one forward and backward pass, operation by operation."""

import argparse
from pathlib import Path

import numpy as np

from minifocal.cli.common import check_classifier, progress_bar
from minifocal.cli.inputs import add_input_arguments, check_output, input_stem, open_input
from minifocal.files import write_bytes
from minifocal.viz.recorder import record
from minifocal.viz.trace import make_trace
from minifocal.viz.trace_page import trace_html

HELP = "write a page that steps through a forward and a backward pass, operation by operation"
EXAMPLE = "minifocal trace digits:12 --checkpoint runs/digits --html twelve.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the image, the checkpoint and the page."""
    add_input_arguments(
        parser, "name or number of the class of the loss (default: what the image is known to show, else the likeliest)"
    )
    parser.add_argument(
        "--html", type=Path, metavar="OUT", help="the page, one file for any browser (default: IMAGE-trace.html, here)"
    )


def run(args: argparse.Namespace) -> int:
    """Record the pass, check its gradients and write the page; print its path last."""
    out: Path = args.html or Path(f"{input_stem(args.image)}-trace.html")
    check_output("--html", out, args.image)
    opened = open_input(args)
    check_classifier(opened.pretrained)
    names, wanted = opened.names, opened.wanted
    image = opened.image("float64")
    # What is shown is the code that a reader reads, in the precision in which its gradients can be checked.
    model = opened.pretrained.build(dtype="float64", ops="reference")
    likeliest = int(model(image.images)[0].argmax())
    label = names.index(image.label) if image.label in names else likeliest
    if wanted is not None:
        label = wanted
    recording = record(model, image.images, np.array([label]))
    calls = sum(1 for _ in recording.walk())
    with progress_bar(calls, "step") as bar:
        trace = make_trace(recording, image.pixels, label, names, image.name, on_step=bar.update)
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

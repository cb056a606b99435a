"""The step-through page: a trace as one HTML file that needs nothing beside itself."""

import base64
import io
import json
import re
import zlib
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from minifocal.viz.canvas import POSITIVE, SIGNED, colour_table
from minifocal.viz.trace import Trace

MOST_NUMBERS = 4_000_000  # on a page: some 18 MB of them
SIGNIFICANT = 6  # digits that the page prints
SCRIPTS = ("numerics.js", "heatmap.js", "playgrounds.js", "steps.js")
TOLERANCE = {"complex step": 1e-10, "central differences": 1e-7}
"""The largest relative error that passes: of the second, as check_gradients has it."""
COLOURS = 33  # of a colour map; between them the page goes in straight lines
SMALLEST = float(np.finfo(np.float32).tiny)


def trace_html(trace: Trace) -> str:
    """Write a page.

    A network whose arrays hold more than MOST_NUMBERS numbers is shown in part: the first channels of each array, as
    many as there is room for; norms and scales are of the whole.
    """
    shown = _cut(trace.arrays)
    formulas = list(dict.fromkeys(tex for step in trace.steps for tex in step["formulas"]))
    data = {
        "steps": [_step(step, formulas) for step in trace.steps],
        "arrays": _descriptions(trace.arrays, shown),
        "sources": trace.sources,
        "about": trace.about,
        "summary": {**trace.summary, "playground": _whole(trace.summary["playground"], trace.arrays, shown)},
        "formulas": [mathml()[tex] for tex in formulas],
        "picture": _picture(trace.pixels),
        "colours": {
            kind: colour_table(name, COLOURS).tolist() for kind, name in (("signed", SIGNED), ("positive", POSITIVE))
        },
        "tolerance": TOLERANCE,
    }
    parts = {
        "style": _read("trace.css"),
        "script": "\n".join(_read(name) for name in SCRIPTS),
        # No text from outside can end the element that holds it: "<" is written as an escape.
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "values": _packed(shown),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read("trace.html"))


@cache
def mathml() -> dict[str, str]:
    """The formulas of all operations: MathML by LaTeX."""
    return json.loads(_read("equations.json"))


def _picture(pixels: np.ndarray) -> str:
    """An image, (1, H, W) or (3, H, W) from 0 to 1, as an address that holds a PNG file."""
    levels = np.rint(255 * pixels).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _read(name: str) -> str:
    return (files("minifocal.viz") / "pages" / name).read_text(encoding="utf-8")


def _step(step: dict[str, Any], formulas: list[str]) -> dict[str, Any]:
    return {
        **step,
        "formulas": [formulas.index(tex) for tex in step["formulas"]],
        "out": [{**shown, "check": _check(shown.get("check"))} for shown in step["out"]],
    }


def _check(check: dict[str, Any] | None) -> dict[str, Any] | None:
    if check is None:
        return None
    rows = [
        [row["index"], *(float(f"{row[name]:.7g}") for name in ("by_hand", "numeric")), float(f"{row['error']:.2g}")]
        for row in check["rows"]
    ]
    return {"method": check["method"], "error": float(f"{check['error']:.2g}"), "rows": rows}


def _cut(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Cut arrays to their first channels, all to the same number of elements, until they fit on a page."""
    if sum(array.size for array in arrays) <= MOST_NUMBERS:
        return arrays
    most = 2**16
    while most > 1 and sum(array[_corner(array.shape, most)].size for array in arrays) > MOST_NUMBERS:
        most //= 2
    return [array[_corner(array.shape, most)] for array in arrays]


def _corner(shape: tuple[int, ...], most: int) -> tuple[slice, ...]:
    """The first rows and columns of a matrix, or the first channels of a map, that are at most so many numbers."""
    sizes = list(shape)
    if len(sizes) > 2:
        sizes[-1] = max(1, min(sizes[-1], most // int(np.prod(sizes[:-1]))))
    while np.prod(sizes) > most:
        longest = int(np.argmax(sizes))
        sizes[longest] = (sizes[longest] + 1) // 2
    return tuple(slice(size) for size in sizes)


def _whole(blocks: list[dict[str, Any]], arrays: list[np.ndarray], shown: list[np.ndarray]) -> list[dict[str, Any]]:
    """The blocks of which every array is there whole: a playground computes with all channels."""

    def is_whole(value: Any) -> bool:
        numbers = value if isinstance(value, list) else [value]
        return all(arrays[number].shape == shown[number].shape for number in numbers)

    return [block for block in blocks if all(is_whole(value) for name, value in block.items() if name != "name")]


def _descriptions(arrays: list[np.ndarray], shown: list[np.ndarray]) -> list[dict[str, Any]]:
    found, offset = [], 0
    for array, part in zip(arrays, shown, strict=True):
        low, high, norm = array.min(), array.max(), np.sqrt((array * array).sum())
        numbers = {name: float(f"{value:.6g}") for name, value in (("low", low), ("high", high), ("norm", norm))}
        found.append({"shape": array.shape, "shown": part.shape, "offset": offset, **numbers})
        offset += part.size
    return found


def _packed(arrays: list[np.ndarray]) -> str:
    """Write numbers as float32, bytes sorted by significance, deflated, in base 64."""
    numbers = np.concatenate([array.ravel() for array in arrays])
    planes = as_printed(numbers).astype("<f4").view(np.uint8).reshape(-1, 4).T
    return base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode("ascii")


def as_printed(numbers: np.ndarray) -> np.ndarray:
    """Give float32 numbers that print with SIGNIFICANT digits as the float64 numbers do.

    Rounding twice, to float32 and then to decimal digits, now and then gives another last digit than rounding once:
    such a number becomes its neighbour. Numbers nearer to zero than SMALLEST become 0: float32 has not so many digits
    for them.
    """
    numbers = np.where(np.abs(numbers) < SMALLEST, 0.0, numbers)
    nearest = numbers.astype(np.float32)
    wanted = _digits(numbers)
    for place in np.flatnonzero(_digits(nearest) != wanted):
        for towards in (-np.inf, np.inf):
            neighbour = np.nextafter(nearest[place], np.float32(towards))
            if _digits(neighbour[None]) == wanted[place]:
                nearest[place] = neighbour
    return nearest


def _digits(numbers: np.ndarray) -> np.ndarray:
    return np.array([float(f"{value:.{SIGNIFICANT - 1}e}") for value in numbers.tolist()])

"""One picture of what a network does with an image: `explain`'s numbers, laid over the image.

From above: the image as the network gets it with the likeliest classes, where the explained class comes from, and a row
for each block. Colours mean numbers, so every row says its own: gates share one scale in a row, norms have one each.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minifocal.errors import one_line
from minifocal.models.config import FOCAL
from minifocal.viz.canvas import (
    BLUE,
    GREY,
    ORANGE,
    POSITIVE,
    SIGNED,
    as_rgb,
    check_picture_path,
    new_figure,
    save_figure,
)
from minifocal.viz.explain import Explanation
from minifocal.viz.maps import GATE, BlockMaps, TokenGrid, over_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ALL, LAST = "all", "last"
MOST_BLOCKS = 12  # of which all are shown where nothing else is asked for
LIKELIEST = 5  # classes named
SMALL, PLAIN = 8, 9  # points
STRENGTH = 0.72  # of a map's colours over the image; the rest is the image's own light and shade

# Inches.
MARGIN, GAP, LABEL = 0.12, 0.1, 0.62
TITLE, BAR, NUMBERS = 0.2, 0.06, 0.19  # above a map; the bar of its colours below, and what they mean
SECTION = 0.56  # of a heading, and a line that says how to read the rows below it
WIDTH = 8.4  # of the picture; more only where a network has more than five levels
NARROWEST = 0.98  # column: the names above the maps have to fit
HIGHEST = 1.5  # of a map: where there are few beside each other, they need not grow for ever
TOP = 1.75  # of the image
FINE = 96  # pixels: smaller images are drawn larger, so that between tokens there is something to see

ROOMY = 1.35  # inches of a column: narrower ones have the short names
SHORT_NAMES = {"gate, mean of channels": "gate, mean", "query × modulator": "q × modulator"}
CLASS_NOTE = (
    "Grad-CAM: what in a stage's last map speaks for the class. "
    "Input gradient: how much its logit changes with each pixel, up or down."
)
GATES_NOTE = (
    "Gates, on one scale a row: how much each level's context counts, with either sign. "
    "Modulator, and query × modulator: L2 norm."
)
CONTEXT_NOTE = (
    "Context of each level, modulator, and query × modulator: L2 norm. "
    "The gate lies between 0 and 1; white is one half."
)


@dataclass(frozen=True)
class Scale:
    """From which number to which the colours of a map go: `low` to `high`, by a colour map."""

    low: float
    high: float
    colours: str

    def text(self, digits: int) -> tuple[str, str]:
        """Give both ends as a person reads them."""
        return number(self.low, digits), number(self.high, digits)


def chosen_blocks(blocks: Sequence[BlockMaps], which: str | None) -> list[BlockMaps]:
    """Choose what is drawn: "all" blocks or the "last" of each stage; where not asked, all of up to MOST_BLOCKS."""
    if which == ALL or (which is None and len(blocks) <= MOST_BLOCKS):
        return list(blocks)
    return list({block.stage: block for block in blocks}.values())


def gate_scale(block: BlockMaps, modulation: str) -> Scale:
    """Give the scale that a block's gates share: around 0, or around 1/2 where a sigmoid makes them."""
    middle = 0.0 if modulation == FOCAL else 0.5
    reach = max((float(np.abs(m.values - middle).max()) for m in block.maps if m.kind == GATE), default=0.0)
    return Scale(middle - reach, middle + reach, SIGNED)


def number(value: float, digits: int = 3) -> str:
    """Write a number with a few digits, and a real minus."""
    return f"{value:.{digits}g}".replace("-", "−")


def shortened(text: str, length: int) -> str:
    """Give text of at most `length` letters in one printable line."""
    text = one_line(text)
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def draw_explanation(
    explanation: Explanation,
    pixels: np.ndarray,
    path: Path,
    *,
    names: Sequence[str],
    modulation: str,
    title: str,
    blocks: str | None = None,
) -> None:
    """Draw an explanation.

    Args:
        explanation: of the network for this image.
        pixels: the image as the network gets it but with its own colours, (Cin, H, W) from 0 to 1.
        path: of the picture, PNG or SVG.
        names: of the classes, in the order of the outputs; none without a classifier.
        modulation: of the network.
        title: above the picture, such as the name of the image.
        blocks: "all", the "last" of each stage, or None: all of up to MOST_BLOCKS, else the last ones.
    Raises:
        InputError: no file of a picture, or it cannot be written.
    """
    check_picture_path(path)
    picture = _Picture(explanation, pixels, names, modulation, chosen_blocks(explanation.blocks, blocks))
    with warnings.catch_warnings():
        # Names may hold letters that the font does not: a box is drawn in their place.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        save_figure(picture.draw(title), path)


class _Picture:
    """Places everything on a figure, in inches from its upper left corner."""

    def __init__(
        self,
        explanation: Explanation,
        pixels: np.ndarray,
        names: Sequence[str],
        modulation: str,
        blocks: list[BlockMaps],
    ) -> None:
        self.explanation, self.names, self.modulation, self.blocks = explanation, names, modulation, blocks
        self.pixels = as_rgb(pixels)
        self.hw = self.pixels.shape[:2]
        self.times = max(1, FINE // max(self.hw))
        self.shade = _larger(_shade(self.pixels), self.times)
        cams = 0 if explanation.of_class is None else len(explanation.of_class.cams) + 1
        columns = max([len(block.maps) for block in blocks] + [cams])
        beside = 2 * MARGIN + LABEL - GAP
        self.width = max(WIDTH, beside + columns * (NARROWEST + GAP))
        room = (self.width - beside) / columns - GAP
        shape = self.hw[0] / self.hw[1]  # height to width
        self.map_width = min(room, HIGHEST, HIGHEST / shape)
        self.map_height = self.map_width * shape
        self.column = max(self.map_width, NARROWEST) + GAP
        self.row = TITLE + self.map_height + BAR + NUMBERS + 0.09
        self.rows = len(blocks) + (cams > 0)

    def draw(self, title: str) -> "Figure":
        top_width = min(TOP, TOP * self.hw[1] / self.hw[0])
        top_height = top_width * self.hw[0] / self.hw[1]
        head = 0.34
        body = head + max(top_height, 1.6) + 0.24
        has_class = self.explanation.of_class is not None
        self.height = body + self.rows * self.row + (1 + has_class) * SECTION + 0.02
        self.figure = new_figure(self.width, self.height)
        self._write(MARGIN, 0.2, shortened(title, 120), size=11, room=self.width - 2 * MARGIN, weight="bold")
        axes = self._axes(MARGIN, head, top_width, top_height)
        axes.imshow(self.pixels, interpolation="nearest", aspect="auto")
        self._write(MARGIN, head + top_height + 0.12, f"{self.hw[0]} × {self.hw[1]} pixels, as the network gets it")
        beside = MARGIN + max(top_width, 2.3) + 0.25
        if has_class:
            self._classes(beside, head)
            self._heading(body, "Where the class comes from", CLASS_NOTE)
            self._class_row(body + SECTION)
            body += SECTION + self.row
        else:
            self._write(beside, head + 0.1, "This network has no classifier: there is no class to explain.", size=PLAIN)
        drawn, there = len(self.blocks), len(self.explanation.blocks)
        some = "" if drawn == there else f" (the last of each stage, {drawn} of {there})"
        self._heading(body, f"What the blocks do{some}", GATES_NOTE if self.modulation == FOCAL else CONTEXT_NOTE)
        for index, block in enumerate(self.blocks):
            self._block_row(block, body + SECTION + index * self.row)
        return self.figure

    def _heading(self, top: float, text: str, note: str) -> None:
        self._write(MARGIN, top + 0.2, text, size=11, weight="bold")
        self._write(MARGIN, top + 0.4, note, color=GREY)

    def _classes(self, left: float, top: float) -> None:
        """Name the likeliest classes with bars of their probability; the explained one stands out."""
        probabilities, of_class = self.explanation.probabilities, self.explanation.of_class
        assert probabilities is not None
        assert of_class is not None
        shown = self.explanation.likeliest(LIKELIEST)
        if of_class.label not in shown:
            shown.append(of_class.label)
        line, bar = 0.25, 1.3
        y = top + 0.1
        room = self.width - MARGIN - left
        explained = shortened(f"explained: {self.names[of_class.label]}", 120)
        self._write(left, y, explained, size=10, room=room, weight="bold", color=ORANGE)
        axes = self._axes(left, y + 0.15, bar, line * len(shown))
        axes.axis("off")
        axes.set_xlim(0, 1)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        values = [float(probabilities[label]) for label in shown]
        colours = [ORANGE if label == of_class.label else BLUE for label in shown]
        axes.barh(range(len(shown)), [1.0] * len(shown), height=0.62, color="#EEEEEE")
        axes.barh(range(len(shown)), values, height=0.62, color=colours)
        for row, label in enumerate(shown):
            middle = y + 0.15 + line * (row + 0.5)
            weight = "bold" if label == of_class.label else "normal"
            self._write(left + bar + 0.58, middle, percent(values[row]), ha="right", size=PLAIN, weight=weight)
            name = shortened(self.names[label], 120)
            self._write(left + bar + 0.66, middle, name, size=PLAIN, room=room - bar - 0.66, weight=weight)

    def _class_row(self, top: float) -> None:
        """Draw where the explained class comes from."""
        of_class = self.explanation.of_class
        assert of_class is not None
        self._label(top, "logit of", shortened(self.names[of_class.label], 20))
        for column, cam in enumerate(of_class.cams):
            title = f"Grad-CAM, stage {cam.stage + 1}" if len(of_class.cams) > 1 else "Grad-CAM"
            scale = Scale(0.0, float(cam.values.max()), POSITIVE)
            self._map(column, top, title, self._over(cam.values, cam.grid), scale)
        values = _larger(of_class.input_gradient, self.times)
        self._map(len(of_class.cams), top, "input gradient", values, Scale(0.0, float(values.max()), POSITIVE))

    def _block_row(self, block: BlockMaps, top: float) -> None:
        """Draw a block's maps, gates on one scale."""
        self._label(top, *block.name.split(", "))
        shared = gate_scale(block, self.modulation)
        for column, shown in enumerate(block.maps):
            scale = shared if shown.kind == GATE else Scale(0.0, float(shown.values.max()), POSITIVE)
            self._map(column, top, shown.name, self._over(shown.values, block.grid), scale)

    def _over(self, tokens: np.ndarray, grid: TokenGrid) -> np.ndarray:
        height, width = self.hw
        return over_image(tokens, grid.enlarged(self.times), (height * self.times, width * self.times))

    def _map(self, column: int, top: float, title: str, values: np.ndarray, scale: Scale) -> None:
        """Draw one map over the image: its name above, below it what its colours mean."""
        left = MARGIN + LABEL + column * self.column
        narrow = self.column < ROOMY
        self._write(left, top + TITLE / 2, SHORT_NAMES.get(title, title) if narrow else title)
        axes = self._axes(left, top + TITLE, self.map_width, self.map_height)
        axes.imshow(_blend(_colours(values, scale), self.shade), interpolation="nearest", aspect="auto")
        below = top + TITLE + self.map_height + 0.04
        width = max(self.map_width, self.column - 2 * GAP)  # both numbers have to fit below
        bar = self._axes(left, below, width, BAR)
        ramp = np.linspace(scale.low, scale.high, 256)[None]
        bar.imshow(_blend(_colours(ramp, scale), np.full((1, 256), self.shade.mean())), aspect="auto")
        low, high = scale.text(2 if narrow else 3)
        self._write(left, below + BAR + NUMBERS / 2, low)
        self._write(left + width, below + BAR + NUMBERS / 2, high, ha="right")

    def _label(self, top: float, *lines: str) -> None:
        for index, line in enumerate(lines):
            weight = "normal" if index else "bold"
            self._write(MARGIN, top + TITLE + 0.09 + 0.15 * index, line, room=LABEL - 0.04, weight=weight)

    def _axes(self, left: float, top: float, width: float, height: float) -> "Axes":
        place = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(place)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(linewidth=0.5, color=GREY)
        return axes

    def _write(
        self, left: float, middle: float, text: str, *, size: int = SMALL, room: float | None = None, **style: Any
    ) -> None:
        """Write a line as it is, a dollar sign begins no formula; where it has only so much room, as far as it fits."""
        options = {"va": "center", "fontsize": size, "parse_math": False, **style}
        line = self.figure.text(left / self.width, 1 - middle / self.height, text, **options)
        length = len(text)
        while room is not None and length > 1:
            share = room * self.figure.dpi / line.get_window_extent().width
            if share >= 1:
                break
            length = min(length - 1, int(length * share) + 1)  # letters differ in width: a step may not be enough
            line.set_text(shortened(text, length))


def percent(probability: float) -> str:
    """Write a probability for a person: 0.0004 is less than 0.1 %, and not nothing."""
    return "< 0.1 %" if 0 < probability < 0.0005 else f"{100 * probability:.1f} %"


def _larger(image: np.ndarray, times: int) -> np.ndarray:
    return image.repeat(times, axis=0).repeat(times, axis=1)


def _shade(image: np.ndarray) -> np.ndarray:
    """Give the lightness of an image, (H, W): its contrast halved, so that colours over it can be read."""
    return 0.3 + 0.7 * (image @ np.array([0.299, 0.587, 0.114]))


def _colours(values: np.ndarray, scale: Scale) -> np.ndarray:
    from matplotlib import colormaps

    span = scale.high - scale.low
    part = (values - scale.low) / span if span > 0 else np.full(values.shape, 0.5 if scale.colours == SIGNED else 0.0)
    return colormaps[scale.colours](part)[..., :3]


def _blend(colours: np.ndarray, shade: np.ndarray) -> np.ndarray:
    return STRENGTH * colours + (1 - STRENGTH) * shade[..., None]

"""One block as a picture: what flows forward, what is kept for the way back, and how the gradient returns."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minifocal.errors import InputError
from minifocal.models.config import FOCAL
from minifocal.models.focalnet import FocalNet
from minifocal.models.modulation import FocalModulation
from minifocal.ops import REFERENCE
from minifocal.viz.canvas import BLUE, GREY, ORANGE, new_figure, save_figure
from minifocal.viz.pictures import FILLS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SKIP, QUERY, MAIN, SUM, GATES, KEPT = 3.0, 10.0, 27.0, 48.0, 62.5, 70.0  # middles of the lanes; where text begins
WIDTH, TOP, ROW = 110.0, 5.0, 6.0  # of the canvas; of its head; from a row to the next
BOX, SHARE, TALL = 19.0, 15.0, 3.6  # width of a box, and of one of the sum's; their height
APART = 0.5  # of an arrow from the middle of its lane: forward to the left, backward to the right
SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉"
PER_LINE = 2  # arrays of a cache on a line


def kept_arrays(cache: Any, known: set[int]) -> list[tuple[str, tuple[int, ...]]]:
    """List the arrays in a cache with their shapes, in the order of its fields.

    Args:
        cache: of a layer or an operation. known: ids of arrays that are kept anyway, such as parameters; what is listed
            joins them, so that an array that two caches share is listed once.
    """
    found = []
    for name, value in zip(cache._fields, cache, strict=True):
        if isinstance(value, np.ndarray):
            if id(value) not in known:
                found.append((name, value.shape))
                known.add(id(value))
        elif hasattr(value, "_fields"):
            found += kept_arrays(value, known)
    return found


def draw_block(model: FocalNet, path: Path) -> None:
    """Draw the first block of a network: forward in blue, backward in orange, and the cache, with its shapes.

    Args:
        model: with focal modulation, one level at least in its first stage, and no options in its blocks.
        path: of the PNG or SVG file.
    Raises:
        InputError: another block than is drawn here, or the file cannot be written.
    """
    config = model.config
    plain = not (config.use_postln or config.use_layerscale or config.use_postln_in_modulation)
    if config.modulation != FOCAL or not config.focal_levels[0] or not plain:
        raise InputError("the picture shows a block of focal modulation with levels, norms first and no layer scale")
    twin = model.replica()
    twin.use_ops(REFERENCE)
    assert isinstance(twin, FocalNet)
    _, cache = twin.forward(np.zeros((2, config.in_chans, *config.image_hw), dtype=model.dtype))
    _Picture(twin, cache.layers[0].blocks[0]).draw(path)


class _Picture:
    """Rows from top to bottom, in the order of the forward pass; each method gives the heights that the next needs."""

    def __init__(self, model: FocalNet, cache: Any) -> None:
        block, self.cache = model.layers[0].blocks[0], cache
        assert isinstance(block.modulation, FocalModulation)
        self.widths, self.kernels = block.modulation.widths, model.config.kernel_sizes(0)
        self.known = {id(parameter.data) for parameter in model.parameters()}
        self.kept = 0  # numbers in the cache, counted as they are listed
        self.height = TOP + ROW * (14.9 + len(self.kernels))
        self.figure = new_figure(8.5, 8.5 * self.height / WIDTH)
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_xlim(0, WIDTH)
        self.axes.set_ylim(self.height, 0)
        self.axes.axis("off")
        self.y = TOP  # middle of the row that was drawn last

    def draw(self, path: Path) -> None:
        """Draw everything from the top, and write the file."""
        seen, x = self.cache.modulation_branch.branch, self.cache.modulation_branch.branch.q
        self._text(MAIN, self.y, f"x  {_dims(x)}", BLUE, ha="center")
        first = self._modulation_branch(seen)
        self._text(MAIN + 3, first, f"x'  {_dims(x)}", BLUE)
        last = self._mlp_branch(first)
        self._both((MAIN, last + 1.2), (MAIN, last + 4.2))
        self._text(MAIN, last + 5.4, f"y  {_dims(x)}", BLUE, ha="center")
        self._head(x.size)
        save_figure(self.figure, path)

    def _modulation_branch(self, seen: Any) -> float:
        """Draw norm1 and the modulation; give the height of the sum that ends the branch."""
        C = self.widths[0]
        start = self.y + 1.2
        norm = self._operation("LayerNorm norm1", "norm", self.cache.modulation_branch.norm, "dweight, dbias")
        fork = self._forked(start, norm - TALL / 2)
        f = self._operation(f"linear f:  {C} → {sum(self.widths)}", "norm", seen.f, "dweight, dbias")
        self._both((MAIN, norm + TALL / 2), (MAIN, f - TALL / 2))
        split = self._operation("split  (back: concatenate)", "map", seen.split)
        self._both((MAIN, f + TALL / 2), (MAIN, split - TALL / 2))
        last = self._levels(split, seen)

        self.y = last + 0.6
        h = self._operation(f"linear h:  {C} → {C}", "norm", seen.h, "dweight, dbias", at=SUM)
        self._both((SUM, last + TALL / 2), (SUM, h - TALL / 2))
        self._text(SUM - 1.5, (last + h) / 2, f"aggregate  {_dims(seen.h.x)}", BLUE, ha="right")
        product = self._operation("q · modulator", "focal", seen.modulate)
        self._both((SUM, h + TALL / 2), (SUM, product), (MAIN + BOX / 2, product))
        self._text(SUM - 1.5, product - 1.9, "modulator", BLUE, ha="right")
        self._text(SUM + 1.5, product - 0.4, "dmodulator =\nd(q · modulator) · q", ORANGE)
        self._both((MAIN - BOX / 2, split), (QUERY, split), (QUERY, product), (MAIN - BOX / 2, product))
        middle = (split + product) / 2
        self._text(QUERY - 1.6, middle, f"q  {_dims(seen.q)}", BLUE, rotation=90, ha="center")
        self._text(QUERY + 1.8, middle, "dq = d(q · modulator) · modulator", ORANGE, rotation=90, ha="center")
        proj = self._operation(f"linear proj:  {C} → {C}", "norm", seen.proj, "dweight, dbias")
        self._both((MAIN, product + TALL / 2), (MAIN, proj - TALL / 2))
        return self._residual(proj, fork)

    def _levels(self, split: float, seen: Any) -> float:
        """Draw the chain of levels and the sum of their gated shares; give the height of its last box."""
        above, aggregate = split, 0.0
        self._text(MAIN + 1.4, split + ROW / 2, f"ctx₀  {_dims(seen.q)}", BLUE)
        shares = []
        for number, (k, level) in enumerate(zip(self.kernels, seen.context.levels, strict=True), start=1):
            here = self._operation(f"level {number}:  {k} × {k}, GELU", "focal", level, "dweight")
            self._link(above, here, fork=number > 1)
            name = SUBSCRIPTS[number]
            aggregate = self._share(here, f"+ gate{name} · ctx{name}", aggregate)
            shares.append(aggregate)
            above = here
        here = self._operation("whole map:  mean, GELU", "focal", seen.context.global_level)
        self._link(above, here, fork=True)
        aggregate = self._share(here, f"+ gate{SUBSCRIPTS[len(self.kernels) + 1]} · mean", aggregate)
        shares.append(aggregate)
        right = SUM + SHARE / 2
        for share in shares[:-1]:
            self._both((GATES, share), (right, share), leaves_lane=True)
        self._both((MAIN + BOX / 2, split), (GATES, split), (GATES, aggregate), (right, aggregate))
        middle = (split + aggregate) / 2
        self._text(GATES, split - 1.8, f"gates  {_dims(seen.gates)}", BLUE, ha="right")
        self._text(GATES + 1.9, middle, "dgate = Σ over C of daggregate · ctx", ORANGE, rotation=90, ha="center")
        return aggregate

    def _mlp_branch(self, start: float) -> float:
        """Draw norm2 and the MLP; give the height of the sum that ends the branch."""
        branch = self.cache.mlp_branch
        mlp, C = branch.branch, self.widths[0]
        hidden = mlp.fc2.x.shape[-1]
        self.y = start
        above = self._operation("LayerNorm norm2", "norm", branch.norm, "dweight, dbias")
        fork = self._forked(start + 1.2, above - TALL / 2)
        for text, cache, parameters in (
            (f"linear fc1:  {C} → {hidden}", mlp.fc1, "dweight, dbias"),
            ("GELU", mlp.act, ""),
            (f"linear fc2:  {hidden} → {C}", mlp.fc2, "dweight, dbias"),
        ):
            here = self._operation(text, "mlp", cache, parameters)
            self._both((MAIN, above + TALL / 2), (MAIN, here - TALL / 2))
            above = here
        return self._residual(above, fork)

    def _operation(self, text: str, fill: str, cache: Any, parameters: str = "", at: float = MAIN) -> float:
        """Draw the next row: a box, what its cache keeps, and which gradients of parameters it gives."""
        self.y += ROW
        self._box(at, self.y, BOX, text, fill)
        arrays = kept_arrays(cache, self.known)
        self.kept += sum(int(np.prod(shape)) for _, shape in arrays)
        words = [f"{name} {'×'.join(map(str, shape))}" for name, shape in arrays] or ["sizes only"]
        lines = [",  ".join(words[start : start + PER_LINE]) for start in range(0, len(words), PER_LINE)]
        self._text(KEPT, self.y, "\n".join(lines), "black" if arrays else GREY)
        self._text(at + BOX / 2 + 0.7, self.y, parameters, ORANGE)
        return self.y

    def _share(self, level: float, text: str, aggregate: float) -> float:
        """Draw the gated share of the level at this height, added to the aggregate of the levels above."""
        here = level + ROW / 2
        self._box(SUM, here, SHARE, text, "focal")
        self._both((MAIN, level + TALL / 2), (MAIN, here), (SUM - SHARE / 2, here))
        if aggregate:
            self._both((SUM, aggregate + TALL / 2), (SUM, here - TALL / 2))
        return here

    def _link(self, above: float, here: float, fork: bool) -> None:
        """Lead from a box to the one below; at a fork, another way leaves in the middle between the two."""
        self._both((MAIN, above + TALL / 2), (MAIN, here - TALL / 2))
        if fork:
            self._plus(MAIN + APART, above + ROW / 2, ORANGE)

    def _forked(self, start: float, end: float) -> float:
        """Lead to a norm, and give the height at which the skip connection leaves."""
        fork = (start + end) / 2
        self._both((MAIN, start), (MAIN, end))
        self._plus(MAIN + APART, fork, ORANGE)
        return fork

    def _residual(self, above: float, fork: float) -> float:
        """Draw the sum at the end of a branch and the skip connection that leads there."""
        self.y += ROW - 0.6
        self._both((MAIN, above + TALL / 2), (MAIN, self.y - 1.2))
        self._both((MAIN - APART, fork), (SKIP, fork), (SKIP, self.y), (MAIN - 1.2, self.y))
        self._plus(MAIN, self.y, BLUE, radius=1.1)
        return self.y

    def _head(self, numbers: int) -> None:
        """Explain the colours, above and below everything else."""
        self._text(QUERY + 29, 2.2, "forward", BLUE, weight="bold", ha="right")
        self._text(QUERY + 30.5, 2.2, "backward", ORANGE, weight="bold")
        self._text(KEPT, 2.2, "kept for the way back", "black", weight="bold")
        self._text(KEPT, 4.4, "(and the weights; an array is listed once)", GREY)
        text = f"together {self.kept:,} numbers,\n{self.kept / numbers:.1f} times as many as x has"
        self._text(KEPT, self.height - 3.2, text, "black")
        y = self.height - 23.0
        self._plus(SUM, y, ORANGE)
        self._text(SUM + 1.8, y, "two gradients add up", ORANGE)
        self._plus(SUM, y + 3.0, BLUE, radius=1.1)
        self._text(SUM + 1.8, y + 3.0, "dy goes both ways", BLUE)

    def _both(self, *points: tuple[float, float], leaves_lane: bool = False) -> None:
        """Draw a way forward through these points, and beside it the way back; it may begin at a vertical lane."""
        for colour, side, step in ((BLUE, -APART, 1), (ORANGE, APART, -1)):
            moved = _moved(points, side)
            if leaves_lane:
                moved[0] = (moved[0][0] + side, moved[0][1])
            moved = moved[::step]
            self.axes.plot(*zip(*moved, strict=True), color=colour, lw=1.1, solid_joinstyle="miter", zorder=1)
            style = {"arrowstyle": "-|>,head_width=0.16,head_length=0.3", "color": colour, "lw": 1.1}
            self.axes.annotate("", moved[-1], moved[-2], arrowprops={**style, "shrinkA": 0, "shrinkB": 0}, zorder=2)

    def _plus(self, x: float, y: float, colour: str, radius: float = 0.8) -> None:
        from matplotlib.patches import Circle

        self.axes.add_patch(Circle((x, y), radius, facecolor="white", edgecolor=colour, lw=1.1, zorder=3))
        half = 0.6 * radius
        self.axes.plot([x - half, x + half], [y, y], color=colour, lw=1.1, zorder=4)
        self.axes.plot([x, x], [y - half, y + half], color=colour, lw=1.1, zorder=4)

    def _box(self, x: float, y: float, width: float, text: str, fill: str) -> None:
        from matplotlib.patches import FancyBboxPatch

        corner, style = (x - width / 2, y - TALL / 2), "round,pad=0,rounding_size=0.7"
        box = FancyBboxPatch(
            corner, width, TALL, boxstyle=style, facecolor=FILLS[fill], edgecolor=GREY, lw=0.8, zorder=3
        )
        self.axes.add_patch(box)
        self._text(x, y, text, "black", ha="center", zorder=4)

    def _text(self, x: float, y: float, text: str, colour: str, **options: Any) -> None:
        self.axes.text(x, y, text, color=colour, fontsize=8, va="center", linespacing=1.35, **options)


def _moved(points: Sequence[tuple[float, float]], side: float) -> list[tuple[float, float]]:
    """Move a way of vertical and horizontal pieces: vertical ones to the right by `side`, horizontal ones up by it."""
    moved = []
    for x, y in points:
        vertical = any(x == other[0] and y != other[1] for other in points)
        horizontal = any(y == other[1] and x != other[0] for other in points)
        moved.append((x + side * vertical, y - side * horizontal))
    return moved


def _dims(array: np.ndarray) -> str:
    return "×".join(map(str, array.shape))

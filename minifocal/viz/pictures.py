"""Pictures as PNG files, drawn with Matplotlib without a screen."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minifocal.errors import InputError, one_line
from minifocal.models.focalnet import FocalNet
from minifocal.viz.canvas import BLUE, GREEN, GREY, ORANGE, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILLS = {"map": "#DCEBF5", "norm": "#EEEEEE", "focal": "#FBE3D6", "mlp": "#DDF1EA"}


def draw_curves(history: Sequence[dict[str, Any]], path: Path, title: str = "") -> None:
    """Draw loss, accuracy and learning rate by epoch.

    Args:
        history: the metrics of each epoch, as a Trainer keeps them; nothing is drawn for none.
        path: of the PNG file. title: above the picture.
    Raises:
        InputError: the file cannot be written.
    """
    if not history:
        return
    figure = new_figure(10.0, 3.2)
    losses, accuracies, rates = figure.subplots(1, 3)
    epochs = [record["epoch"] for record in history]
    # Training images are augmented, their labels smoothed and branches dropped, so their curve may lie above.
    for key, label, colour in (("train", "training", BLUE), ("val", "validation", ORANGE)):
        losses.plot(epochs, [record[f"{key}_loss"] for record in history], color=colour, label=label)
        errors = [100 * (1 - record[f"{key}_accuracy"]) for record in history]
        accuracies.plot(epochs, errors, color=colour, label=label)
    rates.plot(epochs, [record["lr"] for record in history], color=GREEN)
    losses.set_ylabel("cross-entropy (nats)")
    accuracies.set_ylabel("wrong (%)")
    accuracies.set_yscale("symlog", linthresh=1)
    accuracies.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    accuracies.set_ylim(0, 100)
    rates.set_ylabel("learning rate")
    for axes in (losses, accuracies, rates):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    losses.legend(frameon=False)
    figure.suptitle(one_line(title), parse_math=False)  # a folder's name may hold anything
    figure.tight_layout()
    save_figure(figure, path)


def draw_architecture(model: FocalNet, path: Path) -> None:
    """Draw a network from the model itself: its stages, one block, and the focal modulation inside.

    Args:
        model: with modulation "focal" and at least one focal level in its first stage.
        path: of the PNG file.
    Raises:
        InputError: another modulation, or the file cannot be written.
    """
    config = model.config
    if config.modulation != "focal" or not config.focal_levels[0]:
        raise InputError(
            f"the picture shows focal levels, got modulation {config.modulation!r} with {config.focal_levels}"
        )
    figure = new_figure(8.5, 5.1)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 110)
    axes.set_ylim(1.2, 67.2)
    axes.axis("off")
    _draw_network(axes, model)
    _draw_block(axes)
    _draw_modulation(axes, config.kernel_sizes(0))
    save_figure(figure, path)


def _draw_network(axes: "Axes", model: FocalNet) -> None:
    config = model.config
    H, W = (n // config.patch_size for n in config.image_hw)
    boxes = [("image", f"{config.in_chans}×{config.image_hw[0]}×{config.image_hw[1]}", 0, "map")]
    boxes.append(
        (f"patches of {config.patch_size}", f"{H}×{W}×{config.embed_dim}", model.patch_embed.count_parameters(), "norm")
    )
    for number, (stage, dim) in enumerate(zip(model.layers, config.dims, strict=True)):
        shape = f"{H >> number}×{W >> number}×{dim}"
        boxes.append((f"stage {number + 1}\n{len(stage.blocks)} blocks", shape, stage.count_parameters(), "focal"))
    boxes.append(("norm, mean", f"{config.dims[-1]}", model.norm.count_parameters(), "norm"))
    if model.head is not None:
        boxes.append(("classifier", f"{config.num_classes}", model.head.count_parameters(), "map"))
    title = f"The network: {model.count_parameters():,} parameters"
    axes.text(2, 65, title, fontsize=11, weight="bold", va="center")
    width = 107.5 / len(boxes)
    for number, (text, shape, parameters, kind) in enumerate(boxes):
        x = 2 + number * width
        _box(axes, x, 51.5, width - 2.2, 10, f"{text}\n{shape}", kind)
        label = f"{parameters:,}" if number else "parameters"
        axes.text(x + width / 2 - 1.1, 49.8, label, ha="center", va="center", fontsize=8, color=GREY)
        if number:
            _arrow(axes, (x - 2.2, 56.5), (x, 56.5))


def _draw_block(axes: "Axes") -> None:
    axes.text(2, 45, "One block", fontsize=11, weight="bold")
    for x, start, branch, kind, end in ((2, "x", "modulation", "focal", "x'"), (19, "x'", "MLP", "mlp", "y")):
        middle = x + 5.5
        axes.text(middle, 41.4, start, ha="center", style="italic")
        _arrow(axes, (middle, 40.6), (middle, 36))
        for row, (text, fill) in enumerate((("norm", "norm"), (branch, kind))):
            _box(axes, x, 30 - 8.5 * row, 11, 6, text, fill)
            _arrow(axes, (middle, 30 - 8.5 * row), (middle, 27.5 - 8.5 * row))
        axes.plot([middle, x + 12.5, x + 12.5], [38.6, 38.6, 17.4], color=GREY, lw=1)
        _arrow(axes, (x + 12.5, 17.4), (middle + 1.4, 17.4))
        axes.text(middle, 17.2, "+", ha="center", va="center", fontsize=14, color=BLUE)
        _arrow(axes, (middle, 15.8), (middle, 13))
        axes.text(middle, 10.6, end, ha="center", style="italic")
    note = "Backward: each + sends dy both ways,\nand at each fork the two gradients add up."
    axes.text(2, 4, note, color=GREY, fontsize=9, linespacing=1.4)


def _draw_modulation(axes: "Axes", kernels: tuple[int, ...]) -> None:
    axes.text(40, 45, "Focal modulation", fontsize=11, weight="bold")
    _box(axes, 40, 34.5, 13, 7, "linear f\nC to 2C + L + 1", "norm")
    _arrow(axes, (53, 38), (61, 38))
    axes.text(57, 38.8, "ctx", ha="center", fontsize=8)
    left, right = 61.0, 108.0
    labels = [f"level {level}\n{k} × {k} depthwise\nGELU" for level, k in enumerate(kernels, start=1)]
    labels.append("whole map\nmean, GELU")
    step = (right - left) / len(labels)
    width = step - 2.5
    for number, text in enumerate(labels):
        x, centre = left + number * step, left + number * step + width / 2
        _box(axes, x, 34.5, width, 7, text, "focal")
        if number:
            _arrow(axes, (x - 2.5, 38), (x, 38))
        _arrow(axes, (centre, 34.5), (centre, 29))
        axes.text(centre + 0.8, 31.2, f"× gate {number + 1}", color=ORANGE, fontsize=8)
    axes.plot([55, right - 2.5 - width / 2], [29, 29], color=GREY, lw=1)
    axes.text(56, 29.6, "sum", fontsize=8)
    _arrow(axes, (55, 29), (55, 25.5))
    _box(axes, 49, 19.5, 12, 6, "linear h", "norm")
    axes.text(65.5, 23.2, "modulator", ha="center", fontsize=8)
    _arrow(axes, (61, 22.5), (70, 22.5))
    axes.text(71.4, 22.4, "×", va="center", ha="center", fontsize=12, color=BLUE)
    _arrow(axes, (72.8, 22.5), (80, 22.5))
    _box(axes, 80, 19.5, 12, 6, "linear proj", "norm")
    axes.plot([42.5, 42.5, 71.4], [34.5, 15.5, 15.5], color=BLUE, lw=1)
    _arrow(axes, (71.4, 15.5), (71.4, 20.6), BLUE)
    axes.text(57, 16.1, "query q", color=BLUE, fontsize=8)
    formulas = (
        "$q,\\ ctx_0,\\ gates = \\mathrm{split}(f(x))$",
        "$ctx_l = \\mathrm{GELU}(\\mathrm{DWConv}_l(ctx_{l-1}))$",
        "$y = \\mathrm{proj}(q \\odot h(\\Sigma_l\\ gate_l \\odot ctx_l))$",
    )
    for row, formula in enumerate(formulas):
        axes.text(40, 9.5 - 3 * row, formula)
    axes.text(76, 6.5, "One gate a level and token,\nshared over channels.", color=ORANGE, fontsize=8)


def _box(axes: "Axes", x: float, y: float, width: float, height: float, text: str, kind: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.8"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=FILLS[kind], edgecolor=GREY, lw=0.8))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8, linespacing=1.3)


def _arrow(axes: "Axes", start: tuple[float, float], end: tuple[float, float], colour: str = GREY) -> None:
    axes.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1, "shrinkA": 0, "shrinkB": 0}
    )

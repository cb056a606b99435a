"""How wrong a difference quotient is, by its step: the V of truncation and rounding, measured on operations of ours.

    (f(h) - f(-h)) / 2h  =  f'(0)  +  h² f'''(0) / 6 + ...   +  rounding of about eps |f| / h

A large step errs by the curve's bend, a small one by the digits that the subtraction has lost.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from minifocal.arrays import Array, random_generator
from minifocal.functional.context import focal_level_backward, focal_level_forward
from minifocal.functional.layer_norm import layer_norm_backward, layer_norm_forward
from minifocal.gradcheck import FIRST_STEP, HALVINGS, check_gradients
from minifocal.viz.canvas import BLUE, GREEN, GREY, ORANGE, new_figure, save_figure
from minifocal.viz.records import positive, rounded

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = 10.0 ** np.arange(-14.0, 0.25, 0.25)
DIRECTIONS = 15  # random ones; their median is drawn, for the rounding of a single one jumps by a factor of ten
SHAPE = (2, 5, 4, 6)  # B, H, W, C
SEED = 0
FLOAT64, FLOAT32 = "float64", "float32"


@dataclass(frozen=True)
class Function:
    """A function of one array with its way back: forward(x) -> (y, cache), backward(dy, cache) -> dx."""

    forward: Callable[[Array], tuple[Array, Any]]
    backward: Callable[[Array, Any], Array]


@dataclass(frozen=True)
class StepErrors:
    """The errors of difference quotients of one operation, relative to the gradient.

    Attributes:
        name: of the operation.
        steps: (S,), h. errors: (S,) of central differences, by the dtype in which they were computed.
        extrapolated: of central differences taken to h = 0, as gradcheck does it, in float64.
        complex_step: of the complex step, in float64.
        slopes: a and b of the theory in float64: error = a h² where truncation rules, b / h where rounding does.
    """

    name: str
    steps: np.ndarray
    errors: dict[str, np.ndarray]
    extrapolated: float
    complex_step: float
    slopes: tuple[float, float]


def operations(dtype: str) -> dict[str, Function]:
    """The operations that are measured, by name: their forward pass computes in `dtype`, their way back in float64."""
    rng = random_generator(SEED, 1)
    *_, C = SHAPE
    weight, bias = 1.0 + 0.2 * rng.standard_normal(C), 0.2 * rng.standard_normal(C)
    kernel, gate = rng.standard_normal((3, 3, C)) / 3.0, rng.standard_normal((*SHAPE[:3], 1))

    def level_forward(x: Array, weight: Array, gate: Array) -> tuple[Array, Any]:
        _, aggregate, cache = focal_level_forward(x, weight, gate, 0.0)
        return aggregate, cache

    return {
        "layer_norm": _in(dtype, layer_norm_forward, lambda dy, cache: layer_norm_backward(dy, cache)[0], weight, bias),
        "focal_level": _in(
            dtype, level_forward, lambda dy, cache: focal_level_backward(0.0, dy, cache)[0], kernel, gate
        ),
    }


def measure_steps(progress: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """Measure the errors of every operation, step and dtype. progress: called after each of `count_steps()` checks."""
    found = []
    for name in operations(FLOAT64):
        error = partial(_error, progress=progress)
        in_float64, in_float32 = operations(FLOAT64)[name], operations(FLOAT32)[name]
        found.append(
            {
                "operation": name,
                "steps": rounded(STEPS, 4),
                FLOAT64: rounded([error(in_float64, step=h) for h in STEPS.tolist()]),
                FLOAT32: rounded([error(in_float32, step=h) for h in STEPS.tolist()]),
                "extrapolated": rounded(error(in_float64)),
                "complex": rounded(error(in_float64, method="complex")),
            }
        )
    return {"numpy": np.__version__, "shape": list(SHAPE), "directions": DIRECTIONS, "operations": found}


def count_steps() -> int:
    """Count how often `measure_steps` calls progress."""
    return len(operations(FLOAT64)) * (2 * len(STEPS) + 2)


def read_steps(record: dict[str, Any]) -> list[StepErrors]:
    """Read what `measure_steps` gave, out of a record that may hold anything."""
    found = [
        StepErrors(
            name=str(entry["operation"]),
            steps=positive(entry["steps"], None),
            errors={dtype: positive(entry[dtype], len(entry["steps"])) for dtype in (FLOAT64, FLOAT32)},
            extrapolated=float(positive(entry["extrapolated"])),
            complex_step=float(positive(entry["complex"])),
            slopes=fit_slopes(np.array(entry["steps"]), np.array(entry[FLOAT64])),
        )
        for entry in record["operations"]
    ]
    if not found:
        raise ValueError("no operation")
    return found


def draw_steps(measured: list[StepErrors], path: Path) -> None:
    """Draw a panel for each operation: error against step, on logarithmic axes.

    Args:
        measured: one or more operations.
        path: of the PNG or SVG file.
    Raises:
        InputError: the file cannot be written.
    """
    figure = new_figure(8.5, 4.2)
    panels = figure.subplots(1, len(measured), sharey=True, squeeze=False)[0]
    for axes, operation in zip(panels, measured, strict=True):
        _draw_panel(axes, operation)
    panels[0].set_ylabel("relative error of the derivative", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=3, frameon=False, fontsize=8.5)
    figure.tight_layout(rect=(0, 0, 1, 0.88))
    save_figure(figure, path)


def _draw_panel(axes: "Axes", measured: StepErrors) -> None:
    steps = measured.steps
    for dtype, colour in ((FLOAT64, BLUE), (FLOAT32, ORANGE)):
        errors = measured.errors[dtype]
        axes.loglog(steps, errors, "o-", ms=2.5, lw=1, color=colour, label=f"central differences, {dtype}")
        best = int(errors.argmin())
        axes.plot(steps[best], errors[best], "o", ms=8, mfc="none", mec=colour)
    last = FIRST_STEP / 2**HALVINGS
    axes.axvspan(last, FIRST_STEP, color=GREEN, alpha=0.12, lw=0, label="steps that gradcheck takes")
    axes.plot(
        [last, FIRST_STEP], [measured.extrapolated] * 2, color=GREEN, lw=2.5, label="extrapolated from them to h = 0"
    )
    axes.axhline(measured.complex_step, color=GREEN, lw=1.2, ls="--", label="complex step, any h")
    axes.set_ylim(1e-17, 10)
    truncation, rounding = measured.slopes
    for constant, power, text, at, align in (
        (truncation, 2, "  truncation ∝ h²", 2e-4, "left"),
        (rounding, -1, "rounding ∝ 1/h ", 1e-9, "right"),
    ):
        axes.plot(steps, constant * steps**power, color=GREY, lw=0.8, ls=":", label="_")
        axes.text(at, 0.4 * constant * at**power, text, fontsize=8.5, color=GREY, ha=align, va="top")
    axes.set_title(measured.name, fontsize=10)
    axes.set_xlabel("step h", fontsize=9)
    axes.set_xticks([1e-12, 1e-9, 1e-6, 1e-3, 1])
    axes.set_yticks([1e-16, 1e-12, 1e-8, 1e-4, 1])
    axes.minorticks_off()
    axes.tick_params(labelsize=8.5)
    axes.grid(alpha=0.3)


def fit_slopes(steps: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """Fit a and b: error = a h² well above the best step, b / h well below it.

    Args:
        steps, errors: (S,).
    Raises:
        ValueError: the steps do not reach so far to both sides.
    """
    best = steps[int(errors.argmin())]
    wide, narrow = (steps > 10.0 * best) & (steps < 0.1), steps < 0.1 * best
    return float(median(errors[wide] / steps[wide] ** 2)), float(median(errors[narrow] * steps[narrow]))


def _in(dtype: str, forward: Any, backward: Any, *constants: Array) -> Function:
    """Compute forward in `dtype`; the cache is of float64, so that the way back is exact beside the differences."""

    def forward_in(x: Array) -> tuple[Array, Any]:
        y, cache = forward(x, *constants)
        if dtype == FLOAT32:
            y, _ = forward(*(array.astype(dtype) for array in (x, *constants)))
        return y, cache

    return Function(forward_in, lambda dy, cache: backward(dy.astype(FLOAT64), cache))


def _error(function: Function, progress: Callable[[], object], **options: Any) -> float:
    """The error that gradcheck reports, the median over directions; the same directions each time."""
    rng = random_generator(SEED, 2)
    x = random_generator(SEED, 3).standard_normal(SHAPE)
    report = check_gradients(function.forward, function.backward, {"x": x}, rng=rng, directions=DIRECTIONS, **options)
    progress()
    return median(entry.relative_error for entry in report["x"].entries)

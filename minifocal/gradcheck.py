"""Is a hand-written gradient right? Checked against differences of the forward pass.

One output number can be differenced by one input number at a time, which is slow, or along directions: for a random
upstream gradient dy and a random direction v,

    <dy, J v>  =  <J^T dy, v>

must hold, where the left side needs the forward pass only and J^T dy is what the backward pass gives. dy is random on
purpose: with ones everywhere a LayerNorm that forgets its hidden terms passes. float64 only: in float32 a difference
quotient has three good digits, and no tolerance tells a wrong gradient from rounding.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from minifocal.arrays import Array, Generator, get_array_module, like, random_generator
from minifocal.errors import InputError, check_integer
from minifocal.layers.base import Layer

METHODS = ("central", "complex")
DEFAULT_SEED = 271828  # not 0 or 1, which a user's x may come from: dy equal to x would hide a transposed gradient
FIRST_STEP = 1e-3  # of the extrapolated central differences, halved from there
HALVINGS = 8
ENOUGH = 1e-10  # relative error, as the extrapolation estimates it, at which halving ends
COMPLEX_STEP = 1e-30  # nothing is subtracted, so the smallest step is the best


@dataclass(frozen=True)
class Entry:
    """One number compared: an element (with its index) or the slope along a random direction (index None)."""

    index: tuple[int, ...] | None
    analytic: float
    numeric: float
    relative_error: float


@dataclass(frozen=True)
class ArrayCheck:
    """What was found for the gradient with respect to one array; the entries stand worst first."""

    name: str
    shape: tuple[int, ...]
    entries: tuple[Entry, ...]
    tolerance: float
    fault: str = ""  # why it could not be compared, or what else is wrong

    @property
    def relative_error(self) -> float:
        """The largest relative error; infinity where a gradient could not be compared."""
        return math.inf if self.fault else max((entry.relative_error for entry in self.entries), default=0.0)

    @property
    def passed(self) -> bool:
        """Whether every entry is within the tolerance (a NaN is not)."""
        return self.relative_error <= self.tolerance

    def __str__(self) -> str:
        verdict = "pass" if self.passed else "FAIL"
        return f"{self.name:<32} {self.shape!s:<18} {self.relative_error:9.1e}  {verdict}  {self.fault}".rstrip()

    def table(self, rows: int = 10) -> str:
        """List the worst elements: index, analytic, numeric, relative error."""
        head = f"{self.name}\n{'index':>16}  {'analytic':>18}  {'numeric':>18}  {'relative error':>14}"
        lines = [
            f"{'direction' if e.index is None else e.index!s:>16}  {e.analytic:18.10e}  {e.numeric:18.10e}"
            f"  {e.relative_error:14.1e}"
            for e in self.entries[:rows]
        ]
        return "\n".join([head, *lines])


@dataclass(frozen=True)
class GradientReport:
    """The check of every array. `str` gives a line for each, and the worst elements of those that failed."""

    checks: tuple[ArrayCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every gradient is right."""
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the arrays whose gradients are wrong."""
        return tuple(check.name for check in self.checks if not check.passed)

    @property
    def relative_error(self) -> float:
        """The largest relative error of all."""
        return max(check.relative_error for check in self.checks)

    def __getitem__(self, name: str) -> ArrayCheck:
        return next(check for check in self.checks if check.name == name)

    def __str__(self) -> str:
        lines = [str(check) for check in self.checks]
        lines += [check.table() for check in self.checks if not check.passed and check.entries]
        return "\n".join(lines)


def check_gradients(
    forward: Callable[..., tuple[Array, Any]],
    backward: Callable[[Array, Any], Any],
    arrays: Mapping[str, Array] | Sequence[Array],
    *,
    rng: Generator | None = None,
    method: str = "central",
    elementwise: bool = False,
    tolerance: float = 1e-7,
    step: float | None = None,
    directions: int = 1,
) -> GradientReport:
    """Hold a backward function against differences of its forward function.

    With f(h) = <dy, forward(x + h v)>:
    central: (f(h) - f(-h)) / 2h, at smaller and smaller h, extrapolated to h = 0; at one step h where `step` is given.
    One step has to be small against the curvature and large against rounding, and deep networks leave no room between.
    complex: Im f(i h) / h, exact to rounding, where the forward function takes complex numbers: no comparisons, no
    abs, no forced dtype. Every operation and layer of this package does; whole networks refuse them.

    The error of an entry is |analytic - numeric| relative to the larger of the two, or to the root mean square of the
    gradient where that is larger still: an element near zero carries the rounding of its neighbours.

    Args:
        forward: (*arrays) -> (y, cache). Bind whatever is not differentiated (labels, sizes, an rng that is made
            anew in each call) before.
        backward: (dy, cache) -> the gradients with respect to all arrays, in their order; a single one may come bare.
        arrays: float64 arrays by name, or in order ("x0", "x1", ...).
        rng: draws dy and the directions.
        method: "central" or "complex".
        elementwise: compare every element and not directions. A comparison costs about eight forward passes, two with a
            step, one by the complex step.
        tolerance: largest relative error that passes.
        step: h of the plain central difference; not given, the step is extrapolated away.
        directions: how many random directions for an array.
    Returns:
        a GradientReport, failures included: it raises nothing for a wrong gradient. It also fails what has a wrong
        shape or dtype or is not finite, and what changed its inputs or dy in place.
    Raises:
        InputError: no arrays, another dtype than float64, an unknown method, a tolerance, step or number of directions
            that is not above 0, or another number of gradients than of arrays.
    """
    named = dict(arrays) if isinstance(arrays, Mapping) else {f"x{i}": a for i, a in enumerate(arrays)}
    _require_float64(named)
    if not named:
        raise InputError("there are no arrays to check; pass at least one")
    if not 0.0 < tolerance < math.inf:
        raise InputError(f"tolerance must be above 0 and finite, got {tolerance}")
    check_integer("directions", directions, at_least=1)
    if step is not None and not 0.0 < step < math.inf:
        raise InputError(f"step must be above 0 and finite, got {step}")
    _check_method(method)
    rng = rng or random_generator(DEFAULT_SEED)
    values = list(named.values())
    kept = [array.copy() for array in values]
    y, cache = forward(*values)
    dy = like(rng.standard_normal(y.shape), y)
    dy_kept = dy.copy()
    gradients = backward(dy, cache)
    if not isinstance(gradients, tuple | list):
        gradients = (gradients,)
    if len(gradients) != len(values):
        raise InputError(f"backward must give {len(values)} gradients ({', '.join(named)}), got {len(gradients)}")
    touched = "backward changed dy in place" if _differs(dy, dy_kept) else ""

    def slope(position: int, direction: Array) -> float:
        return _slope(forward, kept, position, direction, dy_kept, method, step)

    checks = []
    for position, (name, array, gradient) in enumerate(zip(named, kept, gradients, strict=True)):
        changed = "forward or backward changed it in place" if _differs(values[position], array) else ""
        fault = _fault(gradient, array) or changed or touched
        entries = () if fault else _compare(gradient, position, slope, rng, elementwise, directions)
        checks.append(ArrayCheck(name, tuple(array.shape), entries, tolerance, fault))
    return GradientReport(tuple(checks))


def numeric_gradients(
    forward: Callable[..., tuple[Array, Any]],
    arrays: Mapping[str, Array],
    dy: Array,
    *,
    method: str = "central",
) -> dict[str, Array]:
    """Differentiate <dy, forward> by every element of every array, with no backward function.

    Args:
        forward: (*arrays) -> (y, cache), as for check_gradients.
        arrays: float64 arrays by name, in the order in which forward takes them.
        dy: the upstream gradient, shape of y.
        method: "central" or "complex".
    Returns:
        the gradients by name, each with the shape of its array.
    Raises:
        InputError: an array is not float64, or an unknown method.
    """
    _require_float64(arrays)
    _check_method(method)
    values = list(arrays.values())

    def slope(position: int, direction: Array) -> float:
        return _slope(forward, values, position, direction, dy, method, None)

    return {name: _slopes(array, position, slope) for position, (name, array) in enumerate(arrays.items())}


def compare_arrays(name: str, analytic: Any, numeric: Array, tolerance: float = 1e-7) -> ArrayCheck:
    """Compare an array with what it should be, element by element, by the measure of check_gradients.

    Args:
        name: what it is called in the report.
        analytic: the array in question; anything else is a fault.
        numeric: what it should be.
        tolerance: largest relative error that passes.
    """
    fault = _fault(analytic, numeric)
    entries = () if fault else _compare_elements(analytic, numeric)
    return ArrayCheck(name, tuple(numeric.shape), entries, tolerance, fault)


def check_layer(
    layer: Layer,
    x: Array,
    *,
    rng: Generator | None = None,
    drop_seed: int | None = None,
    **options: Any,
) -> GradientReport:
    """Check a layer: its dx, and the gradient that it adds to each of its parameters.

    The gradients are filled with random numbers first, so a layer that overwrites what it should add to is caught.
    Values and gradients are put back.

    Args:
        layer: in float64. x: its input.
        rng: draws dy and the directions.
        drop_seed: seed of a fresh rng for every forward pass, so that each drops the same; None drops nothing.
        options: method, elementwise, tolerance, step and directions of check_gradients.
    Raises:
        InputError: a parameter or x is not float64, or complex numbers would go through a table made for real ones.
    """
    if options.get("method") == "complex" and layer.ops.threaded:
        raise InputError(
            f'the complex step goes through ops "reference" only, but this layer computes with "{layer.ops.name}"; '
            'build it with ops="reference", or use the method "central"'
        )
    parameters = dict(layer.named_parameters())
    _require_float64({"x": x, **{name: parameter.data for name, parameter in parameters.items()}})
    rng = rng or random_generator(DEFAULT_SEED)
    before = {name: (parameter.data, parameter.grad) for name, parameter in parameters.items()}
    filled = {name: like(rng.standard_normal(p.grad.shape), p.grad) for name, p in parameters.items()}

    def forward(x: Array, *data: Array) -> tuple[Array, Any]:
        for parameter, values in zip(parameters.values(), data, strict=True):
            parameter.data = values
        return layer.forward(x, None if drop_seed is None else random_generator(drop_seed))

    def backward(dy: Array, cache: Any) -> tuple[Array, ...]:
        for name, parameter in parameters.items():
            parameter.grad = filled[name].copy()
        dx = layer.backward(dy, cache)
        return dx, *(parameter.grad - filled[name] for name, parameter in parameters.items())

    try:
        arrays = {"x": x, **{name: data for name, (data, _) in before.items()}}
        return check_gradients(forward, backward, arrays, rng=rng, **options)
    finally:
        for name, (data, grad) in before.items():
            parameters[name].data, parameters[name].grad = data, grad


def _slope(
    forward: Callable[..., tuple[Array, Any]],
    arrays: list[Array],
    position: int,
    direction: Array,
    dy: Array,
    method: str,
    step: float | None,
) -> float:
    """Derivative of <dy, forward> along a direction of one array."""

    def projected(h: complex) -> Array:
        moved = [array.copy() for array in arrays]
        moved[position] = moved[position] + h * direction
        return (dy * forward(*moved)[0]).sum()

    if method == "complex":
        h = step or COMPLEX_STEP
        return float(projected(1j * h).imag) / h

    def quotient(h: float) -> float:
        return (float(projected(h)) - float(projected(-h))) / (2 * h)

    return quotient(step) if step else extrapolate(quotient)


def extrapolate(quotient: Callable[[float], float]) -> float:
    """Take central differences to the limit h = 0 (Ridders 1982, Advances in Engineering Software 4(2), 75-76).

    The error of quotient(h) is a series in h², h^4, ...; each column of the tableau removes one more term. The
    entry that agrees best with its neighbours is returned.
    """
    h = FIRST_STEP
    row = [quotient(h)]
    best, best_error = row[0], math.inf
    for _ in range(HALVINGS):
        h /= 2
        above, row = row, [quotient(h)]
        for order, coarser in enumerate(above, start=1):
            row.append(row[-1] + (row[-1] - coarser) / (4**order - 1))
            error = max(abs(row[-1] - row[-2]), abs(row[-1] - coarser))
            if error < best_error:
                best, best_error = row[-1], error
        if best_error <= ENOUGH * abs(best):
            break
    return best


def _compare(
    gradient: Array,
    position: int,
    slope: Callable[[int, Array], float],
    rng: Generator,
    elementwise: bool,
    directions: int,
) -> tuple[Entry, ...]:
    if elementwise:
        return _compare_elements(gradient, _slopes(gradient, position, slope))
    pairs = []
    for _ in range(directions):
        direction = like(rng.standard_normal(gradient.shape), gradient)
        pairs.append((float((gradient * direction).sum()), slope(position, direction)))
    scale = math.sqrt(float((gradient * gradient).sum()))
    entries = [Entry(None, a, n, _relative_error(a, n, scale)) for a, n in pairs]
    return _worst_first(entries)


def _slopes(array: Array, position: int, slope: Callable[[int, Array], float]) -> Array:
    """The slope along every element, as an array."""
    xp = get_array_module(array)
    slopes, direction = xp.zeros(array.shape), xp.zeros(array.shape)
    for index in product(*map(range, array.shape)):
        direction[index] = 1.0
        slopes[index] = slope(position, direction)
        direction[index] = 0.0
    return slopes


def _compare_elements(analytic: Array, numeric: Array) -> tuple[Entry, ...]:
    scale = math.sqrt(float((numeric * numeric).mean())) if numeric.size else 0.0
    entries = []
    for index in product(*map(range, numeric.shape)):
        a, n = float(analytic[index]), float(numeric[index])
        entries.append(Entry(index, a, n, _relative_error(a, n, scale)))
    return _worst_first(entries)


def _worst_first(entries: list[Entry]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=lambda entry: -entry.relative_error))


def _relative_error(analytic: float, numeric: float, scale: float) -> float:
    difference = abs(analytic - numeric)
    if math.isnan(difference):
        return math.inf
    return difference / max(abs(analytic), abs(numeric), scale) if difference else 0.0


def _fault(gradient: Any, array: Array) -> str:
    if not hasattr(gradient, "shape") or tuple(gradient.shape) != tuple(array.shape):
        got = getattr(gradient, "shape", type(gradient).__name__)
        return f"the gradient must have shape {tuple(array.shape)}, got {got}"
    if gradient.dtype != array.dtype:
        return f"the gradient must be {array.dtype}, got {gradient.dtype}"
    if not bool(get_array_module(gradient).isfinite(gradient).all()):
        return "the gradient is not finite"
    return ""


def _differs(array: Array, before: Array) -> bool:
    return bool((array != before).any())


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, got {method!r}")


def _require_float64(arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        get_array_module(array)
        if array.dtype != "float64":
            raise InputError(
                f"gradients are checked in float64, but {name} is {array.dtype}: in float32 a difference quotient "
                'has about three good digits, which hides wrong gradients; use .astype("float64")'
            )

"""Gradients of a recorded call beside their numeric check: differences of the very forward call that they belong to."""

from functools import partial
from typing import Any

import numpy as np

from minifocal.arrays import Generator
from minifocal.functional.cross_entropy import cross_entropy_forward
from minifocal.gradcheck import COMPLEX_STEP, extrapolate
from minifocal.models.focalnet import FocalNet
from minifocal.viz.call_arrays import flat, upstream_of
from minifocal.viz.recorder import Call, arrays_of

MOST_CHECKED, CHECKED_NUMBERS = 24, 2**18  # elements of a gradient that are checked; fewer where each takes longer
LARGEST_SHOWN = 8  # of these, the largest elements; the others are drawn


def check_call(
    call: Call, forward: Call, gradients: list[tuple[str, np.ndarray]], rng: Generator
) -> dict[str, dict[str, Any]]:
    """Compare elements of every gradient with the slope of <upstream gradient, what forward gives>.

    By the complex step, Im f(x + ih)/h, exact to rounding; where that is refused, by extrapolated central differences.

    Args:
        call: of a backward function. forward: the call that made its cache.
        gradients: what it returned, each called after the forward argument whose gradient it is.
        rng: draws elements beside the largest ones.
    Returns:
        for each gradient the method, the rows compared and the largest relative error, as check_gradients measures it.
    """
    upstream = upstream_of(call)
    cost = sum(array.size for array in arrays_of(forward.result))
    wanted = max(2, min(MOST_CHECKED, CHECKED_NUMBERS // max(1, cost)))
    checks = {}
    for name, gradient in gradients:
        argument = name.removeprefix("d")
        indices = _chosen(gradient, wanted, rng)
        slope = partial(_slope, forward, argument, upstream)
        scale = float(np.sqrt((gradient * gradient).mean()))
        rows: list[dict[str, Any]] = []
        for index in indices:
            by_hand, numeric = float(gradient[index]), slope(index)
            largest = max(abs(by_hand), abs(numeric), scale)
            error = abs(by_hand - numeric) / largest if largest else 0.0
            rows.append({"index": index, "by_hand": by_hand, "numeric": numeric, "error": error})
        checks[name] = {
            "method": _method(forward),
            "rows": rows,
            "error": max(row["error"] for row in rows),
        }
    return checks


def _chosen(gradient: np.ndarray, count: int, rng: Any) -> list[tuple[int, ...]]:
    """The largest elements, then some drawn at random; each once."""
    order = np.argsort(-np.abs(gradient), axis=None, kind="stable")
    largest = order[: min(LARGEST_SHOWN, count)]
    drawn = rng.choice(gradient.size, min(gradient.size, count), replace=False)
    places = list(dict.fromkeys([*largest.tolist(), *drawn.tolist()]))[:count]
    return [tuple(int(i) for i in np.unravel_index(position, gradient.shape)) for position in places]


def _refuses_complex(forward: Call) -> bool:
    return isinstance(forward.layer, FocalNet) or forward.function is cross_entropy_forward


def _method(forward: Call) -> str:
    return "central differences" if _refuses_complex(forward) else "complex step"


def _slope(forward: Call, argument: str, upstream: list[Any], index: tuple[int, ...]) -> float:
    """Differentiate <upstream, outputs of forward> by one element of one argument."""

    def projected(h: complex) -> Any:
        moved = forward.arguments[argument].astype(np.result_type(forward.arguments[argument], type(h)))
        moved[index] += h
        arguments = {**forward.arguments, argument: moved}
        result = forward.function(*([] if forward.layer is None else [forward.layer]), **arguments)
        return sum((up * out).sum() for up, out in zip(upstream, flat(result[:-1]), strict=True))

    if _refuses_complex(forward):
        return extrapolate(lambda h: float(projected(h) - projected(-h)) / (2 * h))
    return float(projected(1j * COMPLEX_STEP).imag) / COMPLEX_STEP

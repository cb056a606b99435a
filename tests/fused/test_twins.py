"""The comparison of twins itself: mistakes that people make in fast code, planted in right operations, are caught.

Each plant is right but for its mistake; the operation without it passes beside.
"""

import numpy as np
import pytest
from twins import Case, Normal, check_twins

from minifocal.ops import REFERENCE, Op

B, H, W, C = 2, 5, 4, 17
MAP, GATE, KERNEL = Normal((B, H, W, C)), Normal((B, H, W, 1)), Normal((3, 3, C))
LINEAR = Case("linear", "", (MAP, Normal((C, 7)), Normal((7,))))
GELU = Case("gelu", "", (MAP,))
NORM = Case("layer_norm", "", (MAP, Normal((C,)), Normal((C,)), 0.1))
CONV = Case("depthwise_conv", "", (MAP, KERNEL))
LEVEL = Case("focal_level", "", (MAP, KERNEL, GATE, MAP))
UNGATED = Case("focal_level", "ungated", (MAP, KERNEL, None, MAP))


def change(way, position, wrong):
    """Plant wrong(result, all results) at a position of what a way gives."""

    def plant(op):
        def changed(*inputs):
            results = getattr(op, way)(*inputs)
            alone = not isinstance(results, tuple)
            results = [results] if alone else list(results)
            results[position] = wrong(results[position], results)
            return results[0] if alone else tuple(results)

        return op._replace(**{way: changed})

    return plant


def without_the_last_channel(array, _):
    array = array.copy()
    array[..., 16:] = 0.0
    return array


def without_the_last_row(array, _):
    array = array.copy()
    array[:, -1] = 0.0
    return array


def a_secret_between_the_ways(op):
    """The cache holds another weight than it says, and only the way back of this pair knows."""
    return Op(
        lambda *inputs: (lambda y, cache: (y, cache._replace(weight=2.0 * cache.weight)))(*op.forward(*inputs)),
        lambda dy, cache: op.backward(dy, cache._replace(weight=0.5 * cache.weight)),
    )


def unturned_kernel(op):
    return op._replace(backward=lambda dz, cache: op.backward(dz, cache._replace(weight=cache.weight[::-1, ::-1])))


def swapped_taps(op):
    return op._replace(forward=lambda x, weight: op.forward(x, weight.swapaxes(0, 1)))


def writes_into_x(op):
    def forward(x, *others):
        results = op.forward(x.copy(), *others)
        x *= 0.0
        return results

    return op._replace(forward=forward)


def writes_into_what_comes_back(op):
    def backward(dy, cache):
        gradients = op.backward(dy.copy(), cache)
        dy += 1.0
        return gradients

    return op._replace(backward=backward)


PLANTS = {
    "float64 out of float32": (LINEAR, change("forward", 0, lambda y, _: y.astype("float64"))),
    "one shape for another": (LINEAR, change("backward", 2, lambda dbias, _: dbias[None])),
    "a bias forgotten": (LINEAR, change("backward", 2, lambda dbias, _: 0.0 * dbias)),
    "a secret between the ways": (LINEAR, a_secret_between_the_ways),
    "channels after the first vector forgotten": (CONV, change("backward", 1, without_the_last_channel)),
    "the last share of rows forgotten": (CONV, change("forward", 0, without_the_last_row)),
    "one image of two": (CONV, change("backward", 1, lambda dweight, _: 0.5 * dweight)),
    "a kernel that is not turned": (CONV, unturned_kernel),
    "taps by column": (CONV, swapped_taps),
    "a rough GELU": (GELU, change("forward", 0, lambda y, _: y + 1e-3)),
    "a slope of something else": (GELU, change("forward", 1, lambda c, _: c._replace(slope=c.slope * 1.01))),
    "no way through the mean": (NORM, change("backward", 0, lambda dx, _: dx + dx.mean() + 0.1)),
    "one gate for all": (LEVEL, change("backward", 2, lambda dgate, _: np.full_like(dgate, dgate.mean()))),
    "a gate's gradient where there is no gate": (UNGATED, change("backward", 2, lambda _, all: all[0][..., :1])),
    "no sum before": (LEVEL, change("forward", 1, lambda aggregate, all: aggregate - all[0])),
    "writing into x": (GELU, writes_into_x),
    "writing into dy": (GELU, writes_into_what_comes_back),
}


@pytest.mark.parametrize("mistake", PLANTS)
def test_a_planted_mistake_is_caught(mistake):
    case, plant = PLANTS[mistake]
    right = getattr(REFERENCE, case.op)
    check_twins(right, right, case, "float32")
    with pytest.raises((AssertionError, ValueError)):
        check_twins(plant(right), right, case, "float32")


def test_a_mistake_of_a_millionth_is_caught_in_float64():
    right = REFERENCE.layer_norm
    wrong = change("backward", 0, lambda dx, _: dx * (1 + 1e-6))(right)
    with pytest.raises(AssertionError):
        check_twins(wrong, right, NORM, "float64")

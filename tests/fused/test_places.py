"""The same numbers give the same bits wherever in memory they lie.

A compiler may make two versions of a loop, one for arrays that might overlap, and choose by their addresses. If the two
sum in different orders, results change from run to run, though never by more than rounding.
"""

from collections.abc import Callable, Iterator
from itertools import permutations

import numpy as np
import pytest

pytest.importorskip("numba")

from minifocal.fused import numba_conv, numba_kernels

T, C, L = 4, 12, 2  # tokens, channels; gates lie L apart
SPACE = 4096  # elements around


def gated_gradient(arrays: dict[str, np.ndarray]) -> None:
    names = ("daggregate", "gate")
    numba_conv.gated_gradient_kernel(
        arrays["dctx"], 0, 0, *(arrays[n] for n in names), L, arrays["ctx"], arrays["slope"], T, arrays["dz"],
        arrays["dgate"], 0, T,
    )  # fmt: skip


def layer_norm(arrays: dict[str, np.ndarray]) -> None:
    names = ("y", "x_hat", "rstd")
    numba_kernels.layer_norm_kernel(
        arrays["x"], arrays["weight"], arrays["bias"], 1e-5, *(arrays[n] for n in names), 0, T
    )


def layer_norm_backward(arrays: dict[str, np.ndarray]) -> None:
    names = ("dy", "x_hat", "rstd", "weight", "dx", "dweight", "dbias")
    numba_kernels.layer_norm_backward_kernel(*(arrays[n] for n in names), 0, T)


MAP, ROW, COLUMN = (T, C), (C,), (T,)
KERNELS: dict[Callable[..., None], tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]] = {
    gated_gradient: (
        {"dctx": ROW, "daggregate": MAP, "gate": (T * L,), "ctx": MAP, "slope": MAP},
        {"dz": MAP, "dgate": COLUMN},
    ),
    layer_norm: ({"x": MAP, "weight": ROW, "bias": ROW}, {"y": MAP, "x_hat": MAP, "rstd": COLUMN}),
    layer_norm_backward: (
        {"dy": MAP, "x_hat": MAP, "rstd": COLUMN, "weight": ROW},
        {"dx": MAP, "dweight": ROW, "dbias": ROW},
    ),
}


def places(first: tuple[int, ...], second: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Where two arrays of these shapes may begin: one after the other, up to 80 elements apart."""
    sizes = int(np.prod(first)), int(np.prod(second))
    for gap in range(80):
        yield SPACE // 2, SPACE // 2 + sizes[0] + gap
        yield SPACE // 2 + sizes[1] + gap, SPACE // 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_a_kernel_that_sums_gives_the_same_bits_wherever_its_arrays_lie(kernel, dtype):
    inputs, outputs = KERNELS[kernel]
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal(shape).astype(dtype) for name, shape in inputs.items()}
    shapes = inputs | outputs
    memory = np.zeros(SPACE, dtype)

    def results(**moved: int) -> list[bytes]:
        arrays = {name: np.zeros(shape, dtype) for name, shape in shapes.items()}
        for name, start in moved.items():
            arrays[name] = memory[start : start + arrays[name].size].reshape(shapes[name])
            arrays[name][...] = 0
        for name, value in values.items():
            arrays[name][...] = value
        kernel(arrays)
        return [arrays[name].tobytes() for name in outputs]

    expected = results()
    for one, other in permutations(shapes, 2):
        if other in outputs:  # what is only read may lie anywhere
            for start, other_start in places(shapes[one], shapes[other]):
                assert results(**{one: start, other: other_start}) == expected, (one, other, start - other_start)

"""Numba's kernels for elementwise work, norms and updates: plain loops, which the compiler turns into vector code.

Each computes flat arrays, or rows start..stop of arrays of rows, so that threads can share the work. Indices count from
zero where it can be seen: Numba would ask of every other one whether it is negative, and no vector code come of it.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit
from numba.extending import overload

from minifocal.fused.numba_cache import KernelCache
from minifocal.fused.numba_math import gelu, gelu_tanh, sigmoid


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function when it is first called, and keep the code on disk where there is a folder to write to."""
    # Sums over channels may be reordered, which vector code does; infinities and NaN stay.
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz", "reassoc"}}
    dispatcher: Any = njit(**options)(function)
    with suppress(RuntimeError):  # Numba found no such folder
        dispatcher._cache = KernelCache(function)  # as njit(cache=True) does with Numba's own
    return dispatcher


def number(array: Any, value: float) -> float:
    """Give a number in the dtype of an array: others would turn a float32 loop into a float64 one."""
    raise NotImplementedError("for kernels only")


@overload(number)
def _number(array, value):  # type: ignore[no-untyped-def]  # Numba compares the signatures
    dtype = array.dtype
    return lambda array, value: dtype(value)


@kernel
def gelu_kernel(x: Any, y: Any, slope: Any) -> None:
    """Fill y and slope."""
    for i in range(x.size):
        y[i], slope[i] = gelu(x[i])


@kernel
def gelu_tanh_kernel(x: Any, y: Any, slope: Any) -> None:
    """Fill y and slope."""
    for i in range(x.size):
        y[i], slope[i] = gelu_tanh(x[i])


@kernel
def sigmoid_kernel(x: Any, y: Any) -> None:
    """Fill y."""
    for i in range(x.size):
        y[i] = sigmoid(x[i])


@kernel
def layer_norm_kernel(
    x: Any, weight: Any, bias: Any, eps: float, y: Any, x_hat: Any, rstd: Any, start: int, stop: int
) -> None:
    """Fill rows of y and x_hat, and rstd."""
    C = weight.size
    inverse = number(x, 1.0) / number(x, C)
    for r in range(start, stop):
        total, squares = number(x, 0.0), number(x, 0.0)
        for c in range(C):
            total += x[r, c]
        mean = total * inverse
        for c in range(C):
            squares += (x[r, c] - mean) * (x[r, c] - mean)
        rstd[r] = scale = number(x, 1.0) / math.sqrt(squares * inverse + number(x, eps))
        for c in range(C):
            x_hat[r, c] = (x[r, c] - mean) * scale
            y[r, c] = x_hat[r, c] * weight[c] + bias[c]


@kernel
def layer_norm_backward_kernel(
    dy: Any, x_hat: Any, rstd: Any, weight: Any, dx: Any, dweight: Any, dbias: Any, start: int, stop: int
) -> None:
    """Fill rows of dx; add to dweight and dbias."""
    C = weight.size
    inverse = number(dy, 1.0) / number(dy, C)
    for r in range(start, stop):
        through_mean, through_variance = number(dy, 0.0), number(dy, 0.0)
        for c in range(C):
            dx_hat = dy[r, c] * weight[c]
            through_mean += dx_hat
            through_variance += dx_hat * x_hat[r, c]
        through_mean *= inverse
        through_variance *= inverse
        for c in range(C):
            dx[r, c] = rstd[r] * (dy[r, c] * weight[c] - through_mean - x_hat[r, c] * through_variance)
            dweight[c] += dy[r, c] * x_hat[r, c]
            dbias[c] += dy[r, c]


@kernel
def layer_scale_backward_kernel(dy: Any, x: Any, gamma: Any, dx: Any, dgamma: Any, start: int, stop: int) -> None:
    """Fill rows of dx; add to dgamma."""
    for r in range(start, stop):
        for c in range(gamma.size):
            dx[r, c] = dy[r, c] * gamma[c]
            dgamma[c] += dy[r, c] * x[r, c]


@kernel
def modulate_backward_kernel(
    dy: Any, x: Any, x_pitch: int, modulator: Any, dx: Any, dmodulator: Any, start: int, stop: int
) -> None:
    """Fill rows of dx and dmodulator; x is flat, and its row r begins at r * x_pitch."""
    C = dy.shape[1]
    for r in range(start, stop):
        x_row = x[r * x_pitch : r * x_pitch + C]
        for c in range(C):
            dx[r, c] = dy[r, c] * modulator[r, c]
            dmodulator[r, c] = dy[r, c] * x_row[c]


@kernel
def patches_kernel(x: Any, size: int, stride: int, above: int, left: int, patches: Any, start: int, stop: int) -> None:
    """Fill images start..stop of patches, (B, rows, columns, C, size, size); what lies outside of x is zero."""
    _, rows, columns, C, _, _ = patches.shape
    for b in range(start, stop):
        for row in range(rows):
            for column in range(columns):
                for i in range(size):
                    for j in range(size):
                        h, w = row * stride + i - above, column * stride + j - left
                        inside = 0 <= h < x.shape[1] and 0 <= w < x.shape[2]
                        for c in range(C):
                            patches[b, row, column, c, i, j] = x[b, h, w, c] if inside else number(x, 0.0)


@kernel
def patches_backward_kernel(
    dpatches: Any, size: int, stride: int, above: int, left: int, dx: Any, start: int, stop: int
) -> None:
    """Add to images start..stop of dx what their patches give."""
    _, rows, columns, C, _, _ = dpatches.shape
    for b in range(start, stop):
        for row in range(rows):
            for column in range(columns):
                for i in range(size):
                    for j in range(size):
                        h, w = row * stride + i - above, column * stride + j - left
                        if 0 <= h < dx.shape[1] and 0 <= w < dx.shape[2]:
                            for c in range(C):
                                dx[b, h, w, c] += dpatches[b, row, column, c, i, j]


@kernel
def sgd_kernel(data: Any, velocity: Any, grad: Any, lr: float, momentum: float, nesterov: bool, decay: float) -> None:
    """Change data and velocity."""
    lr, momentum, decay = number(data, lr), number(data, momentum), number(data, decay)
    for i in range(data.size):
        gradient = grad[i] + decay * data[i]
        velocity[i] = momentum * velocity[i] + gradient
        data[i] -= lr * (gradient + momentum * velocity[i] if nesterov else velocity[i])


@kernel
def adamw_kernel(
    data: Any,
    mean: Any,
    square: Any,
    grad: Any,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    steps: int,
) -> None:
    """Change data, mean and square."""
    mean_share, square_share = number(data, 1.0 - beta1), number(data, 1.0 - beta2)
    mean_scale, square_scale = number(data, 1.0 / (1.0 - beta1**steps)), number(data, 1.0 / (1.0 - beta2**steps))
    rate, kept, small = number(data, lr), number(data, 1.0 - lr * decay), number(data, eps)
    for i in range(data.size):
        mean[i] += mean_share * (grad[i] - mean[i])
        square[i] += square_share * (grad[i] * grad[i] - square[i])
        step = mean[i] * mean_scale / (math.sqrt(square[i] * square_scale) + small)
        data[i] = kept * data[i] - rate * step

"""Fast NumPy: matrix products in threads, and elementwise work in blocks that stay in a core's cache.

Every function here has its twin of the same name in `functional/`; what differs is where the numbers are kept. Results
go into memory that was used before (`workspace.empty`), a chain of elementwise steps goes through one block at a time,
in place, and rows are shared out to threads (`over_ranges`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minifocal.arrays import Array
from minifocal.functional.add import check_same_shape
from minifocal.functional.layer_norm import LayerNormCache, check_layer_norm
from minifocal.functional.layer_scale import LayerScaleCache
from minifocal.functional.linear import LinearCache, as_rows, check_linear
from minifocal.functional.modulate import ModulateCache
from minifocal.functional.split import SplitCache, split_forward
from minifocal.functional.updates import UpdateRow
from minifocal.fused.blocks import blocks, elementwise, row_blocks, update_rows
from minifocal.fused.numpy_activations import (
    gelu_backward,
    gelu_forward,
    gelu_tanh_backward,
    gelu_tanh_forward,
    sigmoid_backward,
    sigmoid_forward,
)
from minifocal.fused.numpy_conv import (
    depthwise_conv_backward,
    depthwise_conv_forward,
    focal_level_backward,
    focal_level_forward,
    global_level_backward,
    global_level_forward,
)
from minifocal.fused.workspace import empty, empty_like
from minifocal.threads import over_items, over_ranges

UPDATE_BLOCK = 2**15  # elements: an update goes through more arrays at once than other work
PRODUCT_SPEED = 32  # multiply-adds of a product in the time of one elementwise step, roughly


def linear_forward(x: Array, weight: Array, bias: Array) -> tuple[Array, LinearCache]:
    """As functional.linear.linear_forward."""
    check_linear(x, weight, bias)
    rows = as_rows(x)
    y = empty((rows.shape[0], weight.shape[1]), x.dtype)

    def by_rows(start: int, stop: int) -> None:
        np.matmul(rows[start:stop], weight, out=y[start:stop])
        y[start:stop] += bias

    def by_columns(start: int, stop: int) -> None:
        part = y[:, start:stop]
        np.matmul(rows, weight[:, start:stop], out=part)
        part += bias[start:stop]

    # Of few rows and a large weight, each thread reads a part of the weight only.
    body = by_rows if y.shape[0] > y.shape[1] else by_columns
    over_ranges(body, max(y.shape), rows.shape[0] * weight.size // PRODUCT_SPEED)
    return y.reshape(*x.shape[:-1], -1), LinearCache(x, weight)


def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, Array, Array]:
    """As functional.linear.linear_backward."""
    x, weight = cache
    rows, drows = as_rows(x), as_rows(dy)
    dx, dweight = empty_like(rows), empty_like(weight)
    ones = np.ones(rows.shape[0], dy.dtype)

    def through_rows(start: int, stop: int) -> None:
        np.matmul(drows[start:stop], weight.T, out=dx[start:stop])

    def through_inputs(start: int, stop: int) -> None:
        np.matmul(rows[:, start:stop].T, drows, out=dweight[start:stop])

    work = rows.shape[0] * weight.size // PRODUCT_SPEED
    over_ranges(through_rows, rows.shape[0], work)
    over_ranges(through_inputs, weight.shape[0], work)
    return dx.reshape(x.shape), dweight, ones @ drows


def layer_norm_forward(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> tuple[Array, LayerNormCache]:
    """As functional.layer_norm.layer_norm_forward."""
    check_layer_norm(x, weight, bias)
    rows = as_rows(x)
    size, C = rows.shape
    y, x_hat, rstd = empty_like(rows), empty_like(rows), np.empty((size, 1), x.dtype)
    average = np.full(C, 1.0 / C, x.dtype)  # a product with it is the fastest mean over rows

    def body(start: int, stop: int) -> None:
        for block in row_blocks(start, stop, C):
            centred = np.subtract(rows[block], (rows[block] @ average)[:, None], out=x_hat[block])
            variance = np.vecdot(centred, centred)[:, None] / C
            np.divide(1.0, np.sqrt(variance + float(eps)), out=rstd[block])
            centred *= rstd[block]
            np.multiply(centred, weight, out=y[block])
            y[block] += bias

    over_ranges(body, size, rows.size)
    return y.reshape(x.shape), LayerNormCache(x_hat.reshape(x.shape), rstd.reshape(*x.shape[:-1], 1), weight)


def layer_norm_backward(dy: Array, cache: LayerNormCache) -> tuple[Array, Array, Array]:
    """As functional.layer_norm.layer_norm_backward."""
    check_same_shape(dy, cache.x_hat)
    x_hat, rstd, weight = as_rows(cache.x_hat), as_rows(cache.rstd), cache.weight
    drows = as_rows(dy)
    size, C = drows.shape
    dx = empty_like(drows)
    average = np.full(C, 1.0 / C, dy.dtype)

    def body(start: int, stop: int) -> tuple[Array, Array]:
        dweight, dbias = np.zeros_like(weight), np.zeros_like(weight)
        for block in row_blocks(start, stop, C):
            dy_b, x_hat_b, dx_b = drows[block], x_hat[block], dx[block]
            ones = np.ones(dy_b.shape[0], dy.dtype)
            product = np.multiply(dy_b, x_hat_b)
            dweight += ones @ product
            dbias += ones @ dy_b
            np.multiply(x_hat_b, (product @ (weight / C))[:, None], out=product)  # through the variance
            np.multiply(dy_b, weight, out=dx_b)
            product += (dx_b @ average)[:, None]  # through the mean
            dx_b -= product
            dx_b *= rstd[block]
        return dweight, dbias

    dweight, dbias = map(sum, zip(*over_ranges(body, size, drows.size), strict=True))
    return dx.reshape(dy.shape), dweight, dbias


def layer_scale_forward(x: Array, gamma: Array) -> tuple[Array, LayerScaleCache]:
    """As functional.layer_scale.layer_scale_forward."""
    return _scaled(x, gamma), LayerScaleCache(x, gamma)


def layer_scale_backward(dy: Array, cache: LayerScaleCache) -> tuple[Array, Array]:
    """As functional.layer_scale.layer_scale_backward."""
    check_same_shape(dy, cache.x)
    rows, drows = as_rows(cache.x), as_rows(dy)

    def body(start: int, stop: int) -> Array:
        return sum(np.einsum("rc,rc->c", drows[b], rows[b]) for b in row_blocks(start, stop, rows.shape[1]))

    return _scaled(dy, cache.gamma), sum(over_ranges(body, rows.shape[0], rows.size))


def _scaled(x: Array, gamma: Array) -> Array:
    rows = as_rows(x)
    y = empty_like(rows)
    over_ranges(lambda a, b: np.multiply(rows[a:b], gamma, out=y[a:b]), rows.shape[0], rows.size)
    return y.reshape(x.shape)


def modulate_forward(x: Array, modulator: Array) -> tuple[Array, ModulateCache]:
    """As functional.modulate.modulate_forward."""
    check_same_shape(x, modulator)
    return _product(x, modulator), ModulateCache(x, modulator)


def modulate_backward(dy: Array, cache: ModulateCache) -> tuple[Array, Array]:
    """As functional.modulate.modulate_backward."""
    check_same_shape(dy, cache.x)
    return _product(dy, cache.modulator), _product(dy, cache.x)


def _product(x: Array, y: Array) -> Array:
    """The product by rows, so that a part of wider rows is not copied first."""
    x_rows, y_rows, z = as_rows(x), as_rows(y), empty_like(as_rows(x))
    over_ranges(lambda a, b: np.multiply(x_rows[a:b], y_rows[a:b], out=z[a:b]), z.shape[0], z.size)
    return z.reshape(x.shape)


def add(x: Array, y: Array) -> Array:
    """As functional.add.add."""
    check_same_shape(x, y)
    (z,) = elementwise(np.add, x, y)
    return z


def split_backward(dparts: tuple[Array, ...], cache: SplitCache) -> Array:
    """As functional.split.split_backward."""
    first = dparts[0]
    rows = [as_rows(part) for part in dparts]
    dx = empty((rows[0].shape[0], sum(cache.sizes)), first.dtype)

    def body(start: int, stop: int) -> None:
        np.concatenate([part[start:stop] for part in rows], axis=-1, out=dx[start:stop])

    over_ranges(body, dx.shape[0], dx.size)
    return dx.reshape(*first.shape[:-1], -1)


def sgd_update(
    rows: Sequence[UpdateRow], *, lr: float, momentum: float, nesterov: bool, skip: Array | None = None
) -> None:
    """As functional.updates.sgd_update."""

    def body(weight_decay: float, data: Array, velocity: Array, grad: Array) -> None:
        gradient = weight_decay * data
        gradient += grad
        velocity *= momentum
        velocity += gradient
        if nesterov:
            gradient += momentum * velocity
            gradient *= lr
        else:
            np.multiply(velocity, lr, out=gradient)
        data -= gradient

    update_rows(_by_blocks(body), rows, skip)


def adamw_update(
    rows: Sequence[UpdateRow],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    steps: int,
    skip: Array | None = None,
) -> None:
    """As functional.updates.adamw_update."""
    beta1, beta2 = betas

    def body(weight_decay: float, data: Array, mean: Array, square: Array, grad: Array) -> None:
        step = np.subtract(grad, mean)
        step *= 1.0 - beta1
        mean += step
        np.multiply(grad, grad, out=step)
        step -= square
        step *= 1.0 - beta2
        square += step
        root_hat = np.multiply(square, 1.0 / (1.0 - beta2**steps))
        np.sqrt(root_hat, out=root_hat)
        root_hat += eps
        np.divide(mean, root_hat, out=step)
        step *= lr / (1.0 - beta1**steps)
        data *= 1.0 - lr * weight_decay
        data -= step

    update_rows(_by_blocks(body), rows, skip)


def _by_blocks(body: Callable[..., None]) -> Callable[..., None]:
    """Make a function of a number and flat arrays go through the arrays block by block."""

    def share(weight_decay: float, *arrays: Array) -> None:
        for block in blocks(0, arrays[0].size, UPDATE_BLOCK):
            body(weight_decay, *(array[block] for array in arrays))

    return share


def clip(gradients: Sequence[Array], max_norm: float) -> Array:
    """As functional.updates.clip; gradients that are short enough are only read."""
    sizes = [gradient.size for gradient in gradients]
    squares: list[Any] = [0.0] * len(gradients)

    def measure(number: int) -> None:
        squares[number] = (gradients[number] * gradients[number]).sum()

    over_items(measure, range(len(gradients)), sizes)
    norm = np.sqrt(np.float64(sum(squares)))  # in their order, whoever was faster
    if norm > max_norm:
        factor = float(max_norm / norm)  # a float of Python's does not turn float32 into float64
        over_items(lambda gradient: np.multiply(gradient, factor, out=gradient), gradients, sizes)
    return norm


OVERRIDES = {
    "linear": (linear_forward, linear_backward),
    "gelu": (gelu_forward, gelu_backward),
    "gelu_tanh": (gelu_tanh_forward, gelu_tanh_backward),
    "sigmoid": (sigmoid_forward, sigmoid_backward),
    "layer_norm": (layer_norm_forward, layer_norm_backward),
    "layer_scale": (layer_scale_forward, layer_scale_backward),
    "depthwise_conv": (depthwise_conv_forward, depthwise_conv_backward),
    "focal_level": (focal_level_forward, focal_level_backward),
    "global_level": (global_level_forward, global_level_backward),
    "modulate": (modulate_forward, modulate_backward),
    "split": (split_forward, split_backward),
    "add": add,
    "sgd_update": sgd_update,
    "adamw_update": adamw_update,
    "clip": clip,
}
"""What replaces what: pairs (forward, backward), and single functions."""

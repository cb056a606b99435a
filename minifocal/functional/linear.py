"""The linear map over the last axis, the same one at every position."""

from typing import NamedTuple

from minifocal.arrays import Array
from minifocal.errors import InputError


class LinearCache(NamedTuple):
    """What `linear_backward` needs."""

    x: Array  # (..., I)
    weight: Array  # (I, O)


def linear_forward(x: Array, weight: Array, bias: Array) -> tuple[Array, LinearCache]:
    """Map the channels of every position: y[..., o] = sum_i x[..., i] weight[i, o] + bias[o].

    Args:
        x: (..., I), float.
        weight: (I, O), same dtype. Stored input-first, so that the code reads as the formula does.
        bias: (O,), same dtype.
    Returns:
        y: (..., O), dtype of x; and a LinearCache.
    Raises:
        InputError: x has another number of channels than weight has rows.
    Cost: I*O multiply-adds a position.
    """
    if x.shape[-1] != weight.shape[0]:
        raise InputError(f"linear: expected x with {weight.shape[0]} channels, got shape {tuple(x.shape)}")
    return x @ weight + bias, LinearCache(x, weight)


def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, Array, Array]:
    """Gradients of linear_forward: (dx, dweight, dbias), shaped like x, weight and bias."""
    x, weight = cache
    dx = dy @ weight.T
    rows, drows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return dx, rows.T @ drows, drows.sum(axis=0)

"""The linear map over the last axis, the same one at every position."""

from typing import NamedTuple

from minifocal.arrays import Array, get_array_module
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
        InputError: x has another number of channels than weight has rows, or bias than columns.
    Cost: I*O multiply-adds a position.
    """
    check_linear(x, weight, bias)
    y = as_rows(x) @ weight + bias
    return y.reshape(*x.shape[:-1], weight.shape[1]), LinearCache(x, weight)


def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, Array, Array]:
    """Gradients of linear_forward: (dx, dweight, dbias), shaped like x, weight and bias."""
    x, weight = cache
    rows, drows = as_rows(x), as_rows(dy)
    dx = (drows @ weight.T).reshape(x.shape)
    return dx, rows.T @ drows, drows.sum(axis=0)


def as_rows(x: Array) -> Array:
    """Put all positions under each other: one large matrix product is faster than one a position row."""
    return x.reshape(-1, x.shape[-1])


def check_linear(x: Array, weight: Array, bias: Array) -> None:
    """Refuse arrays that do not fit together.

    Raises:
        InputError: x has another number of channels than weight has rows, or bias than columns.
    """
    get_array_module(x, weight, bias)
    in_dim, out_dim = weight.shape
    if x.shape[-1] != in_dim or bias.shape != (out_dim,):
        raise InputError(
            f"linear: expected x with {in_dim} channels and a bias of {out_dim}, got shapes {tuple(x.shape)} and "
            f"{tuple(bias.shape)}"
        )

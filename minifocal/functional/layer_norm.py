"""Layer normalisation over the channels of each position."""

from typing import NamedTuple

from minifocal.arrays import Array, get_array_module
from minifocal.errors import InputError


class LayerNormCache(NamedTuple):
    """What `layer_norm_backward` needs."""

    x_hat: Array  # (..., C) normalised input
    rstd: Array  # (..., 1) reciprocal standard deviation
    weight: Array  # (C,)


def layer_norm_forward(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> tuple[Array, LayerNormCache]:
    """Centre and scale the channels of every position, then scale and shift them by learned amounts.

    y = weight * x_hat + bias,  x_hat = (x - mean(x)) / sqrt(var(x) + eps), both over the last axis.
    The variance is the biased one (divided by C), taken from the centred values: mean(x²) - mean(x)² would
    cancel to nothing where the mean is large.

    Args:
        x: (..., C), float.
        weight, bias: (C,), same dtype.
        eps: added to the variance.
    Returns:
        y: (..., C), dtype of x; and a LayerNormCache.
    Raises:
        InputError: x, weight and bias differ in channels.
    Source: Ba, Kiros and Hinton 2016 (arXiv:1607.06450).
    """
    check_layer_norm(x, weight, bias)
    xp = get_array_module(x)
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    rstd = 1.0 / xp.sqrt(variance + float(eps))
    x_hat = centred * rstd
    return x_hat * weight + bias, LayerNormCache(x_hat, rstd, weight)


def layer_norm_backward(dy: Array, cache: LayerNormCache) -> tuple[Array, Array, Array]:
    """Gradients of layer_norm_forward: (dx, dweight, dbias), shaped like x, weight and bias."""
    x_hat, rstd, weight = cache
    positions = tuple(range(dy.ndim - 1))
    dx_hat = dy * weight
    dx = rstd * (
        dx_hat
        - dx_hat.mean(axis=-1, keepdims=True)  # through the mean
        - x_hat * (dx_hat * x_hat).mean(axis=-1, keepdims=True)  # through the variance
    )
    return dx, (dy * x_hat).sum(axis=positions), dy.sum(axis=positions)


def check_layer_norm(x: Array, weight: Array, bias: Array) -> None:
    """Refuse arrays that do not fit together.

    Raises:
        InputError: x, weight and bias differ in channels.
    """
    get_array_module(x, weight, bias)
    if not x.shape[-1:] == weight.shape == bias.shape:
        raise InputError(
            f"layer_norm: expected x (..., C), weight (C,) and bias (C,), got shapes {tuple(x.shape)}, "
            f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        )

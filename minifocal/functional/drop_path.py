"""Dropping at random while training: whole branches of a sample (drop path) or single values (dropout)."""

from typing import NamedTuple

from minifocal.arrays import Array, Generator, like
from minifocal.errors import InputError


class DropCache(NamedTuple):
    """What `drop_backward` needs."""

    scale: Array | None  # 0 where dropped, 1/(1-rate) where kept; None where nothing was drawn


def drop_path_forward(x: Array, rate: float, rng: Generator | None) -> tuple[Array, DropCache]:
    """Drop a branch for some samples: y[b] = x[b] * keep[b] / (1 - rate), keep[b] = (draw[b] < 1 - rate).

    The scale keeps the expected value of y at x.

    Args:
        x: (B, ...), float: the output of a residual branch.
        rate: probability of dropping, in [0, 1).
        rng: gives one draw per sample, `rng.random(B)`; None, or a rate of 0, draws nothing and drops nothing.
    Returns:
        y: shape and dtype of x; and a DropCache.
    Raises:
        InputError: a rate outside [0, 1).
    Source: Huang et al. 2016 (arXiv:1603.09382).
    """
    return _drop(x, (x.shape[0],), rate, rng)


def dropout_forward(x: Array, rate: float, rng: Generator | None) -> tuple[Array, DropCache]:
    """Drop single values: y = x * keep / (1 - rate), one draw per value, `rng.random(x.shape)`.

    Arguments, result and errors as for drop_path_forward.
    Source: Srivastava et al. 2014 (Journal of Machine Learning Research 15, 1929-1958).
    """
    return _drop(x, x.shape, rate, rng)


def check_drop_rate(rate: float) -> None:
    """Refuse a rate that is no probability, or that keeps nothing.

    Raises:
        InputError: a rate outside [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise InputError(f"a drop rate must lie in [0, 1), got {rate}")


def drop_backward(dy: Array, cache: DropCache) -> Array:
    """Gradient of drop_path_forward and of dropout_forward: dx = dy * keep / (1 - rate)."""
    return dy if cache.scale is None else dy * cache.scale


def _drop(x: Array, drawn: tuple[int, ...], rate: float, rng: Generator | None) -> tuple[Array, DropCache]:
    check_drop_rate(rate)
    if rng is None or rate == 0.0:
        return x, DropCache(None)
    keep = rng.random(drawn) < 1.0 - rate
    scale = like(keep / (1.0 - rate), x).reshape(drawn + (1,) * (x.ndim - len(drawn)))
    return x * scale, DropCache(scale)

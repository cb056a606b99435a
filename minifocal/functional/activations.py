"""GELU, exact and by tanh, and the logistic sigmoid."""

import math
from typing import NamedTuple

from minifocal.arrays import Array, erf, get_array_module

# Python floats from `math`: NumPy 2 would turn float32 arrays into float64 if these were NumPy scalars.
SQRT_HALF = math.sqrt(0.5)
INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)
SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)
TANH_CUBIC = 0.044715  # the coefficient that Hendrycks and Gimpel fitted


class GeluCache(NamedTuple):
    """What `gelu_backward` and `gelu_tanh_backward` need."""

    slope: Array  # dy/dx, shape of x


def gelu_forward(x: Array) -> tuple[Array, GeluCache]:
    """Gaussian error linear unit: y = x Φ(x), Φ(x) = (1 + erf(x/√2)) / 2, elementwise.

    The slope on the way back, Φ(x) + x φ(x) with φ the standard normal density, needs what is at hand here, so it is
    cached in place of x.

    Args:
        x: any shape, float.
    Returns:
        y: shape and dtype of x; and a GeluCache.
    Source: Hendrycks and Gimpel 2016 (arXiv:1606.08415).
    """
    xp = get_array_module(x)
    cdf = 0.5 * (1.0 + erf(x * SQRT_HALF))
    density = INV_SQRT_2PI * xp.exp(-0.5 * x * x)
    return x * cdf, GeluCache(cdf + x * density)


def gelu_backward(dy: Array, cache: GeluCache) -> Array:
    """Gradient of gelu_forward: dx = dy (Φ(x) + x φ(x))."""
    return dy * cache.slope


def gelu_tanh_forward(x: Array) -> tuple[Array, GeluCache]:
    """GELU by tanh, a different function: y = x (1 + tanh u) / 2, u = √(2/π) (x + 0.044715 x³).

    It departs from the exact GELU by up to 5e-4. Some published MLPs were trained with it
    ("gelu_pytorch_tanh"). Its slope is (1 + tanh u) / 2 + x (1 - tanh² u) u' / 2.

    Args:
        x: any shape, float.
    Returns:
        y: shape and dtype of x; and a GeluCache.
    """
    xp = get_array_module(x)
    tanh = xp.tanh(SQRT_2_OVER_PI * (x + TANH_CUBIC * x * x * x))
    du = SQRT_2_OVER_PI * (1.0 + 3.0 * TANH_CUBIC * x * x)
    slope = 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * du
    return 0.5 * x * (1.0 + tanh), GeluCache(slope)


def gelu_tanh_backward(dy: Array, cache: GeluCache) -> Array:
    """Gradient of gelu_tanh_forward: dx = dy times the slope."""
    return dy * cache.slope


class SigmoidCache(NamedTuple):
    """What `sigmoid_backward` needs."""

    y: Array


def sigmoid_forward(x: Array) -> tuple[Array, SigmoidCache]:
    """Logistic sigmoid: y = 1 / (1 + exp(-x)), elementwise.

    Computed as (1 + tanh(x/2)) / 2, the same function, which cannot overflow. Its absolute error is rounding; far to
    the left, where y itself is below rounding, the relative error is not, and y becomes exactly 0.

    Args:
        x: any shape, float.
    Returns:
        y: shape and dtype of x, between 0 and 1; and a SigmoidCache.
    """
    xp = get_array_module(x)
    y = 0.5 * (1.0 + xp.tanh(0.5 * x))
    return y, SigmoidCache(y)


def sigmoid_backward(dy: Array, cache: SigmoidCache) -> Array:
    """Gradient of sigmoid_forward: dx = dy y (1 - y)."""
    return dy * cache.y * (1.0 - cache.y)

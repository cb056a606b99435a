"""GELU and sigmoid in NumPy, block by block and in place."""

import numpy as np

from minifocal.arrays import Array
from minifocal.functional.activations import (
    INV_SQRT_2PI,
    SQRT_2_OVER_PI,
    SQRT_HALF,
    TANH_CUBIC,
    GeluCache,
    SigmoidCache,
)
from minifocal.functional.add import check_same_shape
from minifocal.fused.blocks import elementwise

# Abramowitz and Stegun 1964, formula 7.1.26: 1 - erf(z) = t (a1 + t (a2 + ...)) exp(-z²), t = 1 / (1 + p z), z >= 0.
ERF_P = 0.3275911
ERF_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def gelu_forward(x: Array) -> tuple[Array, GeluCache]:
    """As functional.activations.gelu_forward; in float32 y and slope are within 5e-7 of the exact values.

    There the error function is Abramowitz and Stegun's, whose exponential the slope needs anyway.
    """
    y, slope = elementwise(_gelu32 if x.dtype == np.float32 else _gelu64, x, outputs=2)
    return y, GeluCache(slope)


def gelu_tanh_forward(x: Array) -> tuple[Array, GeluCache]:
    """As functional.activations.gelu_tanh_forward."""
    y, slope = elementwise(_gelu_tanh, x, outputs=2)
    return y, GeluCache(slope)


def gelu_backward(dy: Array, cache: GeluCache) -> Array:
    """As functional.activations.gelu_backward."""
    check_same_shape(dy, cache.slope)
    (dx,) = elementwise(np.multiply, dy, cache.slope)
    return dx


def gelu_tanh_backward(dy: Array, cache: GeluCache) -> Array:
    """As functional.activations.gelu_tanh_backward."""
    return gelu_backward(dy, cache)


def sigmoid_forward(x: Array) -> tuple[Array, SigmoidCache]:
    """As functional.activations.sigmoid_forward."""
    (y,) = elementwise(_sigmoid, x)
    return y, SigmoidCache(y)


def sigmoid_backward(dy: Array, cache: SigmoidCache) -> Array:
    """As functional.activations.sigmoid_backward."""
    check_same_shape(dy, cache.y)
    (dx,) = elementwise(_sigmoid_slope, dy, cache.y)
    return dx


def _gelu32(x: Array, y: Array, slope: Array) -> None:
    """With a = |x|: the upper tail 1 - Φ(a) = t (a1 + ...) exp(-a²/2) / 2, and Φ(x) = 1 - Φ(-x)."""
    density = np.multiply(x, x, out=slope)
    density *= -0.5
    np.exp(density, out=density)
    t = np.abs(x)
    t *= ERF_P * SQRT_HALF
    t += 1.0
    np.divide(1.0, t, out=t)
    tail = np.multiply(t, 0.5 * ERF_A[4], out=y)
    for a in ERF_A[3::-1]:
        tail += 0.5 * a
        tail *= t
    tail *= density
    # Φ(x) = 1/2 + sign(x) (1/2 - tail). The sign is a bit, moved by integers: np.copysign is seven times slower.
    np.subtract(0.5, tail, out=tail)
    sign = np.bitwise_and(x.view(np.uint32), np.uint32(0x80000000))
    np.bitwise_xor(tail.view(np.uint32), sign, out=tail.view(np.uint32))
    cdf = tail
    cdf += 0.5
    density *= INV_SQRT_2PI
    density *= x
    density += cdf
    cdf *= x


def _gelu64(x: Array, y: Array, slope: Array) -> None:
    from scipy.special import erf  # imported where used: the package starts without SciPy

    cdf = erf(np.multiply(x, SQRT_HALF, out=y), out=y)
    cdf += 1.0
    cdf *= 0.5
    density = np.multiply(x, x, out=slope)
    density *= -0.5
    np.exp(density, out=density)
    density *= INV_SQRT_2PI
    density *= x
    density += cdf
    cdf *= x


def _gelu_tanh(x: Array, y: Array, slope: Array) -> None:
    square = np.multiply(x, x, out=slope)
    tanh = np.multiply(square, TANH_CUBIC, out=y)
    tanh += 1.0
    tanh *= x
    tanh *= SQRT_2_OVER_PI
    np.tanh(tanh, out=tanh)
    # slope = (1 + tanh)/2 (1 + x (1 - tanh) u')
    square *= 3.0 * TANH_CUBIC * SQRT_2_OVER_PI
    square += SQRT_2_OVER_PI
    square *= x
    square *= 1.0 - tanh
    square += 1.0
    tanh += 1.0
    tanh *= 0.5
    slope *= tanh
    y *= x


def _sigmoid(x: Array, y: Array) -> None:
    np.multiply(x, 0.5, out=y)
    np.tanh(y, out=y)
    y += 1.0
    y *= 0.5


def _sigmoid_slope(dy: Array, y: Array, dx: Array) -> None:
    np.subtract(1.0, y, out=dx)
    dx *= y
    dx *= dy

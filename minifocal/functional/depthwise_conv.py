"""Depthwise convolution: a k x k neighbourhood of every token, one channel at a time."""

from typing import NamedTuple

from minifocal.arrays import Array, get_array_module
from minifocal.errors import InputError


class DepthwiseConvCache(NamedTuple):
    """What `depthwise_conv_backward` needs."""

    x: Array  # (B, H, W, C)
    weight: Array  # (k, k, C)


def depthwise_conv_forward(x: Array, weight: Array) -> tuple[Array, DepthwiseConvCache]:
    """Look at a k x k neighbourhood of every token, one channel at a time.

    z[b, h, w, c] = sum_ij weight[i, j, c] * x[b, h + i - k//2, w + j - k//2, c]

    Args:
        x: (B, H, W, C), float. Tokens outside the grid count as zero.
        weight: (k, k, C), same dtype; k odd. No bias, as in the official code.
    Returns:
        z: (B, H, W, C), dtype of x; and a DepthwiseConvCache.
    Raises:
        InputError: weight has other channels than x, or k is even.
    Cost: k*k*B*H*W*C multiply-adds; caches x only.
    Source: hierarchical contextualization, Yang et al. 2022, section 3 (arXiv:2203.11926).
    """
    check_depthwise_conv(x, weight)
    return _convolve(x, weight), DepthwiseConvCache(x, weight)


def depthwise_conv_backward(dz: Array, cache: DepthwiseConvCache) -> tuple[Array, Array]:
    """Gradients of depthwise_conv_forward: (dx, dweight), shaped like x and weight.

    x[h, w] reached z[h - i + k//2, w - j + k//2] through weight[i, j], so dx gathers from there: the same
    convolution, of dz, with the kernel turned by half a turn.
    """
    x, weight = cache
    dx = _convolve(dz, weight[::-1, ::-1])
    return dx, _correlate(x, dz, weight)


def check_depthwise_conv(x: Array, weight: Array) -> None:
    """Refuse arrays that do not fit together.

    Raises:
        InputError: weight has other channels than x, or k is even.
    """
    get_array_module(x, weight)
    k, k2, C = weight.shape
    if x.ndim != 4 or x.shape[3] != C:
        raise InputError(f"depthwise_conv: expected x of shape (B, H, W, {C}), got {tuple(x.shape)}")
    if k != k2 or k % 2 == 0:
        raise InputError(f"depthwise_conv: expected a square kernel of odd size, got {k} x {k2}")


def _convolve(x: Array, weight: Array) -> Array:
    xp = get_array_module(x, weight)
    _, H, W, _ = x.shape
    k = weight.shape[0]
    padded = _pad(x, k // 2)
    z = xp.zeros(x.shape, dtype=xp.result_type(x, weight))
    for i in range(k):
        for j in range(k):
            z += weight[i, j] * padded[:, i : i + H, j : j + W]
    return z


def _correlate(x: Array, dz: Array, weight: Array) -> Array:
    """dweight[i, j, c] = sum_bhw dz[b, h, w, c] * x[b, h + i - k//2, w + j - k//2, c]."""
    xp = get_array_module(x, dz)
    _, H, W, _ = x.shape
    k = weight.shape[0]
    padded = _pad(x, k // 2)
    taps = [(dz * padded[:, i : i + H, j : j + W]).sum(axis=(0, 1, 2)) for i in range(k) for j in range(k)]
    return xp.stack(taps).reshape(weight.shape)


def _pad(x: Array, margin: int) -> Array:
    xp = get_array_module(x)
    return xp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))

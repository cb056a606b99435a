"""Exercise 20, solved: find the bug: a gated depthwise convolution.

On the way back the kernel is turned by half a turn: both of its axes are reversed. Only the rows were. A kernel
that is symmetric from left to right would have hidden it, and so would a check with weights of ones.
"""

import math

import numpy as np
from scipy.special import erf


def gelu(z):
    """Give GELU(z) and its slope."""
    cdf = 0.5 * (1.0 + erf(z / math.sqrt(2.0)))
    density = np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    return z * cdf, cdf + z * density


def shifted(x, k):
    """Go through the taps of a k x k kernel: i, j and the map x as that tap sees it, zeros outside."""
    _, H, W, _ = x.shape
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    for i in range(k):
        for j in range(k):
            yield i, j, padded[:, i : i + H, j : j + W]


def debug_gated_conv(dy, x, weight, gate):
    """Give y and the gradients of a gated depthwise convolution.

    Args:
        dy: (B, H, W, C), the gradient with respect to y. x: (B, H, W, C).
        weight: (k, k, C), k odd. gate: (B, H, W, 1).
    Returns:
        y, dx (B, H, W, C), dweight (k, k, C) and dgate (B, H, W, 1).
    """
    k = weight.shape[0]
    z = sum(weight[i, j] * window for i, j, window in shifted(x, k))
    ctx, slope = gelu(z)
    y = gate * ctx

    dgate = (dy * ctx).sum(axis=-1, keepdims=True)
    dz = dy * gate * slope
    dweight = np.zeros_like(weight)
    for i, j, window in shifted(x, k):
        dweight[i, j] = (dz * window).sum(axis=(0, 1, 2))
    dx = sum(weight[k - 1 - i, k - 1 - j] * window for i, j, window in shifted(dz, k))
    return y, dx, dweight, dgate

"""Exercise 20: find the bug: a gated depthwise convolution (tutorial 7).

    y[b, h, w, c] = gate[b, h, w, 0] GELU(z[b, h, w, c])
    z[b, h, w, c] = sum_ij weight[i, j, c] x[b, h + i - k//2, w + j - k//2, c]

The forward pass is right; one thing on the way back is wrong. Find it and mend it; leave y as it is.

    python 20_debug_gated_conv.py

says which gradients disagree with differences of the forward pass; a kernel of your own, mostly zeros, shows more.
Then, in the folder above: minifocal learn check 20
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
    dx = sum(weight[k - 1 - i, j] * window for i, j, window in shifted(dz, k))
    return y, dx, dweight, dgate


if __name__ == "__main__":
    from minifocal import check_gradients

    shapes = {"x": (2, 5, 4, 3), "weight": (3, 3, 3), "gate": (2, 5, 4, 1)}
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal(shape) for name, shape in shapes.items()}

    def forward(*arrays):
        y, *_ = debug_gated_conv(np.zeros(shapes["x"]), *arrays)
        return y, arrays

    def backward(dy, arrays):
        _, *gradients = debug_gated_conv(dy, *arrays)
        return gradients

    print(check_gradients(forward, backward, values))

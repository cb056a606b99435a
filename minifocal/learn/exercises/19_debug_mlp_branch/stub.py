"""Exercise 19: find the bug: an MLP on a residual branch (tutorial 8).

    y = x + hidden @ weight2 + bias2,   hidden = GELU(z),   z = x @ weight1 + bias1

The forward pass is right; one thing on the way back is wrong. Find it and mend it; leave y as it is.

    python 19_debug_mlp_branch.py

says which gradients disagree with differences of the forward pass; look at what the wrong ones have in common.
Then, in the folder above: minifocal learn check 19
"""

import math

import numpy as np
from scipy.special import erf


def normal_cdf(z):
    """Give the cumulative distribution of the standard normal distribution."""
    return 0.5 * (1.0 + erf(z / math.sqrt(2.0)))


def gelu_slope(z):
    """Give the slope of GELU, dy/dz of y = z Φ(z)."""
    return normal_cdf(z) + z * np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)


def as_rows(x):
    """Put all positions under each other."""
    return x.reshape(-1, x.shape[-1])


def debug_mlp_branch(dy, x, weight1, bias1, weight2, bias2):
    """Give y and the gradients of an MLP on a residual branch.

    Args:
        dy: (B, T, C), the gradient with respect to y. x: (B, T, C).
        weight1: (C, D). bias1: (D,). weight2: (D, C). bias2: (C,).
    Returns:
        y, dx (B, T, C), dweight1, dbias1, dweight2 and dbias2.
    """
    z = x @ weight1 + bias1
    hidden = z * normal_cdf(z)
    y = x + hidden @ weight2 + bias2

    dhidden = dy @ weight2.T
    dweight2 = as_rows(hidden).T @ as_rows(dy)
    dbias2 = as_rows(dy).sum(axis=0)
    dz = dhidden * gelu_slope(hidden)
    dweight1 = as_rows(x).T @ as_rows(dz)
    dbias1 = as_rows(dz).sum(axis=0)
    dx = dy + dz @ weight1.T
    return y, dx, dweight1, dbias1, dweight2, dbias2


if __name__ == "__main__":
    from minifocal import check_gradients

    shapes = {"x": (2, 5, 3), "weight1": (3, 4), "bias1": (4,), "weight2": (4, 3), "bias2": (3,)}
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal(shape) for name, shape in shapes.items()}

    def forward(*arrays):
        y, *_ = debug_mlp_branch(np.zeros(shapes["x"]), *arrays)
        return y, arrays

    def backward(dy, arrays):
        _, *gradients = debug_mlp_branch(dy, *arrays)
        return gradients

    print(check_gradients(forward, backward, values))

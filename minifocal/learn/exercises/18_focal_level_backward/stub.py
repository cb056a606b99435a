"""Exercise 18: a whole focal level (tutorial 7).

    z = depthwise convolution of ctx_before with weight (k, k, C), zeros outside
    ctx = GELU(z) = z Φ(z)
    aggregate = gate * ctx

Write `focal_level_backward` with NumPy. Then, in the folder above: minifocal learn check 18
"""

import math

import numpy as np
from scipy.special import erf


def focal_level_backward(dctx, daggregate, ctx_before, weight, gate):
    """Give the gradients of a whole focal level: convolution, GELU, gate.

    ctx goes two ways: to the next level, from which dctx comes back, and through the gate into the aggregate. The
    convolution is z[b, h, w, c] = sum_ij weight[i, j, c] ctx_before[b, h + i - k//2, w + j - k//2, c].

    Args:
        dctx, daggregate: (B, H, W, C), the gradients with respect to ctx and aggregate.
        ctx_before: (B, H, W, C). weight: (k, k, C), k odd. gate: (B, H, W, 1).
    Returns:
        dctx_before (B, H, W, C), dweight (k, k, C) and dgate (B, H, W, 1).
    """
    raise NotImplementedError

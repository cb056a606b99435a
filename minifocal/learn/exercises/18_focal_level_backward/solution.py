"""Exercise 18, solved: a whole focal level.

The forward pass is read backwards: at the fork the two gradients of ctx add up, one of them through the gate; GELU
multiplies by its slope at z; the convolution has its two gradients.

The library does it in functional/context.py.
"""

import math

import numpy as np
from scipy.special import erf


def focal_level_backward(dctx, daggregate, ctx_before, weight, gate):
    """Solve the exercise; see its docstring for the shapes."""
    k, (_, H, W, _) = weight.shape[0], ctx_before.shape
    border = ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0))
    padded = np.pad(ctx_before, border)
    z = sum(weight[i, j] * padded[:, i : i + H, j : j + W] for i in range(k) for j in range(k))
    cdf = 0.5 * (1.0 + erf(z / math.sqrt(2.0)))
    density = np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)

    dgate = (daggregate * z * cdf).sum(axis=-1, keepdims=True)
    dz = (dctx + gate * daggregate) * (cdf + z * density)
    padded_dz = np.pad(dz, border)
    dctx_before, dweight = np.zeros_like(ctx_before), np.zeros_like(weight)
    for i in range(k):
        for j in range(k):
            dctx_before += weight[k - 1 - i, k - 1 - j] * padded_dz[:, i : i + H, j : j + W]
            dweight[i, j] = (dz * padded[:, i : i + H, j : j + W]).sum(axis=(0, 1, 2))
    return dctx_before, dweight, dgate

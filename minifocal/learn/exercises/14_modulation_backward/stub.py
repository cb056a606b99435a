"""Exercise 14: the product of query and modulator (tutorial 8).

    y = q * m,   m[b, h, w, o] = sum_c z[b, h, w, c] weight[c, o] + bias[o]

Write `modulation_backward` with NumPy. Then, in the folder above: minifocal learn check 14
"""

import numpy as np


def modulation_backward(dy, q, z, weight, bias):
    """Give the gradients of a modulated query: the query times a linear map of the context.

    Args:
        dy: (B, H, W, C), the gradient with respect to y.
        q: (B, H, W, C), the query. z: (B, H, W, C), the gathered context. weight: (C, C). bias: (C,).
    Returns:
        dq and dz (B, H, W, C), dweight (C, C) and dbias (C,).
    """
    raise NotImplementedError

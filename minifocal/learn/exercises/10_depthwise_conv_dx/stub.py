"""Exercise 10: the convolution's gradient for the map (tutorial 6).

    z[b, h, w, c] = sum_ij weight[i, j, c] x[b, h + i - k//2, w + j - k//2, c]

Write `depthwise_conv_dx` with NumPy. Then, in the folder above: minifocal learn check 10
"""

import numpy as np


def depthwise_conv_dx(dz, weight):
    """Give the gradient of a depthwise convolution with respect to its input.

    Args:
        dz: (B, H, W, C), the gradient with respect to z. weight: (k, k, C), k odd.
    Returns:
        dx, (B, H, W, C).
    """
    raise NotImplementedError

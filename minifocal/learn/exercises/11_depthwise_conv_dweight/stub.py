"""Exercise 11: the convolution's gradient for the kernel (tutorial 6).

    z[b, h, w, c] = sum_ij weight[i, j, c] x[b, h + i - k//2, w + j - k//2, c]

Write `depthwise_conv_dweight` with NumPy. Then, in the folder above: minifocal learn check 11
"""

import numpy as np


def depthwise_conv_dweight(dz, x, k):
    """Give the gradient of a depthwise convolution with respect to its kernel.

    Args:
        dz: (B, H, W, C), the gradient with respect to z. x: (B, H, W, C), what was convolved; zero outside the grid.
        k: the size of the kernel, odd.
    Returns:
        dweight, (k, k, C).
    """
    raise NotImplementedError

"""Exercise 07: an image cut into patches (tutorial 5).

    patches[b, h, w, (c, i, j)] = x[b, h*stride + i, w*stride + j, c],   i and j from 0 to size - 1

Write `cut_patches` with NumPy. Then, in the folder above: minifocal learn check 07
"""

import numpy as np


def cut_patches(x, size, stride):
    """Cut a map into square patches, each laid out as a vector.

    The vector's index (c, i, j) has the channel c running slowest and the column j fastest, as the weight (O, C, P,
    P) of a convolution has. Rows and columns behind the last whole patch are left out.

    Args:
        x: (B, H, W, C). size: P, the side of a patch. stride: the step between patches; both in pixels.
    Returns:
        patches, (B, H', W', C*P*P) with H' = (H - P) // stride + 1, and W' in the same way.
    """
    raise NotImplementedError

"""Exercise 08: patches put back (tutorial 5).

    patches[b, h, w, (c, i, j)] = x[b, h*stride + i, w*stride + j, c],   i and j from 0 to size - 1

Write `patches_backward` with NumPy. Then, in the folder above: minifocal learn check 08
"""

import numpy as np


def patches_backward(dpatches, shape, size, stride):
    """Bring the gradient of patches back to the map that they were cut from.

    Patches overlap where stride < size; where pixels are in no patch their gradient is zero. In a patch's vector
    the channel c runs slowest and the column j fastest.

    Args:
        dpatches: (B, H', W', C*P*P). shape: (B, H, W, C), of the map.
        size: P, the side of a patch. stride: the step between patches.
    Returns:
        dx, (B, H, W, C).
    """
    raise NotImplementedError

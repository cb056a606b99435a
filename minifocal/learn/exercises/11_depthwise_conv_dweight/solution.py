"""Exercise 11, solved: the convolution's gradient for the kernel.

One weight serves every token of every image, so its gradient is a sum over b, h and w: of dz times the pixel that
this weight met there. It is the correlation of dz with x.

The library does it in functional/depthwise_conv.py.
"""

import numpy as np


def depthwise_conv_dweight(dz, x, k):
    """Solve the exercise; see its docstring for the shapes."""
    _, H, W, C = x.shape
    margin = k // 2
    padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    dweight = np.zeros((k, k, C), dtype=dz.dtype)
    for i in range(k):
        for j in range(k):
            dweight[i, j] = (dz * padded[:, i : i + H, j : j + W]).sum(axis=(0, 1, 2))
    return dweight

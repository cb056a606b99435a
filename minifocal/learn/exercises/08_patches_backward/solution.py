"""Exercise 08, solved: patches put back.

Each pixel went, unchanged, into every patch that covers it, so its gradient is the sum of what those patches send
back: `+=` into zeros. Pixels that no patch covers keep their zero.

The library does it in functional/patches.py.
"""

import numpy as np


def patches_backward(dpatches, shape, size, stride):
    """Solve the exercise; see its docstring for the shapes."""
    B, _, _, C = shape
    _, rows, columns, _ = dpatches.shape
    dx = np.zeros(shape, dtype=dpatches.dtype)
    for h in range(rows):
        for w in range(columns):
            window = dpatches[:, h, w].reshape(B, C, size, size).transpose(0, 2, 3, 1)
            dx[:, h * stride : h * stride + size, w * stride : w * stride + size] += window
    return dx

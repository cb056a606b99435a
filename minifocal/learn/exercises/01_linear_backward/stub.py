"""Exercise 01: a linear layer's three gradients (tutorial 1).

    y[b, t, o] = sum_i x[b, t, i] weight[i, o] + bias[o]

Write `linear_backward` with NumPy. Then, in the folder above: minifocal learn check 01
"""

import numpy as np


def linear_backward(dy, x, weight):
    """Give the gradients of a linear layer.

    Args:
        dy: (B, T, O), the gradient of the loss with respect to y.
        x: (B, T, I), what the layer was given. weight: (I, O).
    Returns:
        dx (B, T, I), dweight (I, O) and dbias (O,).
    """
    raise NotImplementedError

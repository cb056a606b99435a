"""Exercise 16: layer scale (tutorial 8).

    y[b, t, c] = gamma[c] x[b, t, c]

Write `layer_scale_backward` with NumPy. Then, in the folder above: minifocal learn check 16
"""

import numpy as np


def layer_scale_backward(dy, x, gamma):
    """Give the gradients of layer scale: a learned factor for every channel.

    Args:
        dy: (B, T, C), the gradient with respect to y. x: (B, T, C). gamma: (C,).
    Returns:
        dx (B, T, C) and dgamma (C,).
    """
    raise NotImplementedError

"""Exercise 06: LayerNorm's two hidden terms (tutorial 4).

    y = weight * x_hat + bias,   x_hat = (x - mean) / sqrt(var + eps)
    mean and var over the last axis; var is the mean of (x - mean)²

Write `layer_norm_backward` with NumPy. Then, in the folder above: minifocal learn check 06
"""

import numpy as np


def layer_norm_backward(dy, x, weight, eps):
    """Give the gradients of LayerNorm.

    Args:
        dy: (B, T, C), the gradient with respect to y.
        x: (B, T, C), what it was given. weight: (C,).
        eps: a number, under the root.
    Returns:
        dx (B, T, C), dweight (C,) and dbias (C,).
    """
    raise NotImplementedError

"""Exercise 03: the slope of GELU (tutorial 3).

    y = x Φ(x),   Φ(x) = (1 + erf(x/√2)) / 2,   φ(x) = Φ'(x) = exp(-x²/2) / √(2π)

Write `gelu_backward` with NumPy. Then, in the folder above: minifocal learn check 03
"""

import math

import numpy as np
from scipy.special import erf


def gelu_backward(dy, x):
    """Give the gradient of GELU, element by element.

    Args:
        dy: any shape, the gradient with respect to y.
        x: the same shape.
    Returns:
        dx, the same shape.
    """
    raise NotImplementedError

"""Exercise 04: the slope of GELU by tanh (tutorial 3).

    y = x (1 + tanh u) / 2,   u = √(2/π) (x + 0.044715 x³)

Write `gelu_tanh_backward` with NumPy. Then, in the folder above: minifocal learn check 04
"""

import math

import numpy as np


def gelu_tanh_backward(dy, x):
    """Give the gradient of the GELU that is made with tanh, element by element.

    Args:
        dy: any shape, the gradient with respect to y.
        x: the same shape.
    Returns:
        dx, the same shape.
    """
    raise NotImplementedError

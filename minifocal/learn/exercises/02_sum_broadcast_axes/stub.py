"""Exercise 02: the sum over a broadcast axis (tutorial 1).

    y = x, repeated as NumPy broadcasts it, to the shape of dy

Write `sum_broadcast_axes` with NumPy. Then, in the folder above: minifocal learn check 02
"""

import numpy as np


def sum_broadcast_axes(dy, shape):
    """Give the gradient of an array that was broadcast to a larger shape.

    NumPy lines up the last axes; missing axes in front and axes of length 1 are repeated.

    Args:
        dy: the gradient with respect to the repeated array, any shape.
        shape: of the array before, such as (3,) or (2, 1, 1, 3); () for a scalar.
    Returns:
        dx, of that shape.
    """
    raise NotImplementedError

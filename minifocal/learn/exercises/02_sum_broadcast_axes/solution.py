"""Exercise 02, solved: the sum over a broadcast axis.

An element that was repeated n times reached n elements of y, each with slope 1: its gradient is the sum of theirs.
The axes to sum over are those that NumPy put in front, and those of length 1. (Summing over an axis whose length is
1 in dy too does no harm.)

The library does it in functional/linear.py, for a bias; every `.sum(axis=positions)` in functional/ is one of these.
"""

import numpy as np


def sum_broadcast_axes(dy, shape):
    """Solve the exercise; see its docstring for the shapes."""
    in_front = dy.ndim - len(shape)
    repeated = [in_front + axis for axis, length in enumerate(shape) if length == 1]
    return dy.sum(axis=(*range(in_front), *repeated), keepdims=True).reshape(shape)

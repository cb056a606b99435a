"""The sum where a residual branch joins; on the way back, where it parts."""

from minifocal.arrays import Array, get_array_module
from minifocal.errors import InputError


def add(x: Array, y: Array) -> Array:
    """Add two maps of one shape: x + y. It needs no way back: the gradient goes to both as it is.

    Args:
        x, y: any shape, float.
    Raises:
        InputError: the shapes differ.
    """
    check_same_shape(x, y)
    return x + y


def check_same_shape(x: Array, y: Array) -> None:
    """Refuse arrays that would be broadcast.

    Raises:
        InputError: the shapes differ.
    """
    get_array_module(x, y)
    if x.shape != y.shape:
        raise InputError(f"expected two arrays of one shape, got {tuple(x.shape)} and {tuple(y.shape)}")

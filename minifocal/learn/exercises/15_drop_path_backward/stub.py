"""Exercise 15: drop path (tutorial 8).

    y[b] = x[b] * keep[b] / (1 - rate),   keep[b] = 1 where draws[b] < 1 - rate, else 0

Write `drop_path_backward` with NumPy. Then, in the folder above: minifocal learn check 15
"""

import numpy as np


def drop_path_backward(dy, draws, rate):
    """Give the gradient of drop path, which drops a residual branch for some samples of a batch.

    Args:
        dy: (B, H, W, C), the gradient with respect to y.
        draws: (B,), the uniform numbers that were drawn for the samples.
        rate: a number in (0, 1), the probability of dropping.
    Returns:
        dx, (B, H, W, C).
    """
    raise NotImplementedError

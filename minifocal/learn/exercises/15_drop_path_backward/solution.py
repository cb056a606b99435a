"""Exercise 15, solved: drop path.

Once drawn, drop path multiplies each sample by a fixed number, 0 or 1/(1 - rate), and so does its way back: the
same draws, the same scale.

The library does it in functional/drop_path.py.
"""

import numpy as np


def drop_path_backward(dy, draws, rate):
    """Solve the exercise; see its docstring for the shapes."""
    scale = (draws < 1.0 - rate).astype(dy.dtype) / (1.0 - rate)
    return dy * scale[:, None, None, None]

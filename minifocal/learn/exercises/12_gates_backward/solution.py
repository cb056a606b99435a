"""Exercise 12, solved: gates that choose among levels.

A gate is one number for all channels of a token, so its gradient sums over the channels; a level's context gets dy
times its own gate. Moving the levels to the front makes both one product.

The library does it in functional/context.py, one level at a time.
"""

import numpy as np


def gates_backward(dy, ctx, gates):
    """Solve the exercise; see its docstring for the shapes."""
    by_level = np.moveaxis(gates, -1, 0)[..., None]
    return by_level * dy, np.moveaxis((ctx * dy).sum(axis=-1), 0, -1)

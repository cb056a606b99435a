"""Exercise 12: gates that choose among levels (tutorial 7).

    y[b, h, w, c] = sum_l gates[b, h, w, l] ctx[l, b, h, w, c]

Write `gates_backward` with NumPy. Then, in the folder above: minifocal learn check 12
"""

import numpy as np


def gates_backward(dy, ctx, gates):
    """Give the gradients of a gated sum of levels: each token has one gate a level, shared by all channels.

    Args:
        dy: (B, H, W, C), the gradient with respect to y.
        ctx: (L, B, H, W, C), the context of each level. gates: (B, H, W, L).
    Returns:
        dctx (L, B, H, W, C) and dgates (B, H, W, L).
    """
    raise NotImplementedError

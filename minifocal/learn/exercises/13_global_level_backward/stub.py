"""Exercise 13: the share of the global level (tutorial 7).

    y[b, h, w, c] = gate[b, h, w, 0] ctx_global[b, 0, 0, c],   ctx_global = GELU(mean of ctx over h and w)

Write `global_level_backward` with NumPy. Then, in the folder above: minifocal learn check 13
"""

import numpy as np


def global_level_backward(dy, gate, ctx_global, slope):
    """Give the gradients of the global level: the mean of the whole map, given to every token by its gate.

    Args:
        dy: (B, H, W, C), the gradient with respect to y.
        gate: (B, H, W, 1). ctx_global: (B, 1, 1, C), kept from the forward pass.
        slope: (B, 1, 1, C), the slope of GELU at the mean, kept too.
    Returns:
        dctx (B, H, W, C), for the map that was averaged, and dgate (B, H, W, 1).
    """
    raise NotImplementedError

"""Exercise 06, solved: LayerNorm's two hidden terms.

x[j] reaches every channel of x_hat: directly, through the mean and through the variance. The last two are the
hidden terms: they take out of dx what lies along (1, 1, ..., 1) and along x_hat, the two directions that LayerNorm
forgets.

The library does it in functional/layer_norm.py.
"""

import numpy as np


def layer_norm_backward(dy, x, weight, eps):
    """Solve the exercise; see its docstring for the shapes."""
    centred = x - x.mean(axis=-1, keepdims=True)
    rstd = 1.0 / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    x_hat = centred * rstd
    dx_hat = dy * weight
    mean_part = dx_hat.mean(axis=-1, keepdims=True)
    variance_part = x_hat * (dx_hat * x_hat).mean(axis=-1, keepdims=True)
    return rstd * (dx_hat - mean_part - variance_part), (dy * x_hat).sum(axis=(0, 1)), dy.sum(axis=(0, 1))

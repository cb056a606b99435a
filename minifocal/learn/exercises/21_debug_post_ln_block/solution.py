"""Exercise 21, solved: find the bug: modulation with LayerNorm after it.

The term through the variance was made from dy and not from dp_hat = dy * norm_weight. Where norm_weight is all
ones, as in a network that has not been trained yet, the two are the same: the bug shows only with random values.
"""

import numpy as np


def as_rows(x):
    """Put all positions under each other."""
    return x.reshape(-1, x.shape[-1])


def layer_norm(p, weight, bias, eps):
    """Give LayerNorm(p), and p_hat and rstd for the way back."""
    centred = p - p.mean(axis=-1, keepdims=True)
    rstd = 1.0 / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    p_hat = centred * rstd
    return weight * p_hat + bias, p_hat, rstd


def debug_post_ln_block(dy, x, weight_q, weight_m, norm_weight, norm_bias, eps):
    """Give y and the gradients of a modulation with LayerNorm behind it, on a residual branch.

    Args:
        dy: (B, T, C), the gradient with respect to y. x: (B, T, C).
        weight_q, weight_m: (C, C). norm_weight, norm_bias: (C,). eps: a number.
    Returns:
        y, dx (B, T, C), dweight_q, dweight_m, dnorm_weight and dnorm_bias.
    """
    q, m = x @ weight_q, x @ weight_m
    branch, p_hat, rstd = layer_norm(q * m, norm_weight, norm_bias, eps)
    y = x + branch

    dnorm_weight = as_rows(dy * p_hat).sum(axis=0)
    dnorm_bias = as_rows(dy).sum(axis=0)
    dp_hat = dy * norm_weight
    mean_part = dp_hat.mean(axis=-1, keepdims=True)
    variance_part = p_hat * (dp_hat * p_hat).mean(axis=-1, keepdims=True)
    dp = rstd * (dp_hat - mean_part - variance_part)
    dq, dm = dp * m, dp * q
    dweight_q = as_rows(x).T @ as_rows(dq)
    dweight_m = as_rows(x).T @ as_rows(dm)
    dx = dy + dq @ weight_q.T + dm @ weight_m.T
    return y, dx, dweight_q, dweight_m, dnorm_weight, dnorm_bias

"""Exercise 21: find the bug: modulation with LayerNorm after it (tutorial 8).

    y = x + LayerNorm(p),   p = q * m,   q = x @ weight_q,   m = x @ weight_m
    LayerNorm(p) = norm_weight * p_hat + norm_bias over the last axis, the variance with eps

The forward pass is right; one thing on the way back is wrong. Find it and mend it; leave y as it is.

    python 21_debug_post_ln_block.py

says which gradients disagree with differences of the forward pass; change the values and see when it passes.
Then, in the folder above: minifocal learn check 21
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
    variance_part = p_hat * (dy * p_hat).mean(axis=-1, keepdims=True)
    dp = rstd * (dp_hat - mean_part - variance_part)
    dq, dm = dp * m, dp * q
    dweight_q = as_rows(x).T @ as_rows(dq)
    dweight_m = as_rows(x).T @ as_rows(dm)
    dx = dy + dq @ weight_q.T + dm @ weight_m.T
    return y, dx, dweight_q, dweight_m, dnorm_weight, dnorm_bias


if __name__ == "__main__":
    from minifocal import check_gradients

    shapes = {"x": (2, 5, 4), "weight_q": (4, 4), "weight_m": (4, 4), "norm_weight": (4,), "norm_bias": (4,)}
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal(shape) for name, shape in shapes.items()}

    def forward(*arrays):
        y, *_ = debug_post_ln_block(np.zeros(shapes["x"]), *arrays, 1e-5)
        return y, arrays

    def backward(dy, arrays):
        _, *gradients = debug_post_ln_block(dy, *arrays, 1e-5)
        return gradients

    print(check_gradients(forward, backward, values))

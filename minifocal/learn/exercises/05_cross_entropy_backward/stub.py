"""Exercise 05: softmax and cross-entropy (tutorial 3).

    loss = 1/B sum_b -log p[b, labels[b]],   p[b, n] = exp(logits[b, n]) / sum_m exp(logits[b, m])

Write `cross_entropy_backward` with NumPy. Then, in the folder above: minifocal learn check 05
"""

import numpy as np


def cross_entropy_backward(dloss, logits, labels):
    """Give the gradient of the mean cross-entropy of a batch.

    Args:
        dloss: a number, the gradient with respect to the loss.
        logits: (B, N); some are in the thousands.
        labels: (B,) integers in [0, N).
    Returns:
        dlogits, (B, N).
    """
    raise NotImplementedError

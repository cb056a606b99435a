"""Exercise 05, solved: softmax and cross-entropy.

-log p[label] = log sum_m exp(logits[m]) - logits[label]. The first part has the softmax as its gradient, the second
takes 1 off at the label. Subtracting the largest logit of a row changes nothing but keeps exp from overflowing.

The library does it in functional/cross_entropy.py.
"""

import numpy as np


def cross_entropy_backward(dloss, logits, labels):
    """Solve the exercise; see its docstring for the shapes."""
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    dlogits = exp / exp.sum(axis=1, keepdims=True)
    dlogits[np.arange(len(labels)), labels] -= 1.0
    return dlogits * (dloss / len(labels))

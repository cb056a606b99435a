"""Exercise 14, solved: the product of query and modulator.

Of a product each factor gets dy times the other. What the modulator gets, dy * q, then goes back through the linear
map as in exercise 01.

The library does it in functional/modulate.py and functional/linear.py.
"""

import numpy as np


def modulation_backward(dy, q, z, weight, bias):
    """Solve the exercise; see its docstring for the shapes."""
    C = q.shape[-1]
    dmodulator = dy * q
    rows, drows = z.reshape(-1, C), dmodulator.reshape(-1, C)
    return dy * (z @ weight + bias), dmodulator @ weight.T, rows.T @ drows, drows.sum(axis=0)

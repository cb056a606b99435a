"""Exercise 17: a step of SGD with momentum (tutorial 9).

    g = grad + weight_decay * weight
    velocity = momentum * velocity + g
    weight = weight - lr * velocity

Write `sgd_step` with NumPy. Then, in the folder above: minifocal learn check 17
"""

import numpy as np


def sgd_step(weight, grad, velocity, lr, momentum, weight_decay):
    """Make a step of stochastic gradient descent with momentum and weight decay.

    The arguments stay as they are: give new arrays.

    Args:
        weight, grad, velocity: of one shape.
        lr, momentum, weight_decay: numbers.
    Returns:
        new_weight and new_velocity.
    """
    raise NotImplementedError

"""Exercise 17, solved: a step of SGD with momentum.

Weight decay is the gradient of weight_decay/2 |weight|², so it joins the gradient before the velocity does. The
step takes the new velocity.

The library does it in functional/updates.py, which also knows Nesterov's momentum.
"""

import numpy as np


def sgd_step(weight, grad, velocity, lr, momentum, weight_decay):
    """Solve the exercise; see its docstring for the shapes."""
    new_velocity = momentum * velocity + grad + weight_decay * weight
    return weight - lr * new_velocity, new_velocity

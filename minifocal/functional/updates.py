"""The steps of the optimizers: the only functions that change arrays which they were given."""

from minifocal.arrays import Array, get_array_module


def sgd_update(
    data: Array, grad: Array, velocity: Array, *, lr: float, momentum: float, nesterov: bool, weight_decay: float
) -> None:
    """Make a step of stochastic gradient descent with momentum, in place.

    g = grad + weight_decay * data,   velocity = momentum * velocity + g,   data -= lr * velocity

    With Nesterov's momentum the step looks ahead: data -= lr * (g + momentum * velocity).

    Args:
        data, grad, velocity: a parameter, its gradient and what is kept between steps, of one shape; grad stays.
        lr: learning rate. momentum: in [0, 1). nesterov: look ahead.
        weight_decay: lambda.
    Source: Sutskever et al. 2013 (Proceedings of Machine Learning Research 28(3), 1139-1147).
    """
    gradient = grad + weight_decay * data
    velocity *= momentum
    velocity += gradient
    data -= lr * (gradient + momentum * velocity if nesterov else velocity)


def adamw_update(
    data: Array,
    grad: Array,
    mean: Array,
    square: Array,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    steps: int,
) -> None:
    """Make a step of Adam with decoupled weight decay, in place.

    mean = b1 * mean + (1 - b1) * grad,   square = b2 * square + (1 - b2) * grad²
    data = (1 - lr * weight_decay) * data - lr * mean_hat / (sqrt(square_hat) + eps)
    mean_hat = mean / (1 - b1^steps),   square_hat = square / (1 - b2^steps)

    Args:
        data, grad, mean, square: a parameter, its gradient and what is kept between steps, of one shape; grad stays.
        lr: learning rate. betas: b1, b2. eps: keeps the quotient finite.
        weight_decay: lambda. steps: the number of this one, from 1.
    Source: Loshchilov and Hutter 2019 (arXiv:1711.05101).
    """
    xp = get_array_module(square)
    beta1, beta2 = betas
    mean += (1.0 - beta1) * (grad - mean)
    square += (1.0 - beta2) * (grad * grad - square)
    mean_hat = mean / (1.0 - beta1**steps)
    root_hat = xp.sqrt(square / (1.0 - beta2**steps))
    data *= 1.0 - lr * weight_decay
    data -= lr * mean_hat / (root_hat + eps)

"""The steps of the optimizers, and what is done to gradients before: functions that change the arrays they are given.

They take all parameters at once, so that a table of operations may go through them as it likes: in threads, or in one
launch of a kernel. None of them waits for a device.
"""

from collections.abc import Sequence
from typing import NamedTuple

from minifocal.arrays import Array, get_array_module


class UpdateRow(NamedTuple):
    """A parameter as an optimizer's step takes it; all arrays have one shape."""

    data: Array
    grad: Array  # only read
    state: tuple[Array, ...]  # what the optimizer keeps between steps
    weight_decay: float  # lambda


def sgd_update(
    rows: Sequence[UpdateRow], *, lr: float, momentum: float, nesterov: bool, skip: Array | None = None
) -> None:
    """Make a step of stochastic gradient descent with momentum for every row, in place.

    g = grad + weight_decay * data,   velocity = momentum * velocity + g,   data -= lr * velocity

    With Nesterov's momentum the step looks ahead: data -= lr * (g + momentum * velocity).

    Args:
        rows: one for each parameter; its state is the velocity.
        lr: learning rate. momentum: in [0, 1). nesterov: look ahead.
        skip: a boolean scalar array beside the parameters; where it is true nothing changes.
    Source: Sutskever et al. 2013 (Proceedings of Machine Learning Research 28(3), 1139-1147).
    """
    for data, grad, (velocity,), weight_decay in rows:
        gradient = grad + weight_decay * data
        new_velocity = momentum * velocity + gradient
        step = gradient + momentum * new_velocity if nesterov else new_velocity
        _replace(velocity, new_velocity, skip)
        _replace(data, data - lr * step, skip)


def adamw_update(
    rows: Sequence[UpdateRow],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    steps: int,
    skip: Array | None = None,
) -> None:
    """Make a step of Adam with decoupled weight decay for every row, in place.

    mean = b1 * mean + (1 - b1) * grad,   square = b2 * square + (1 - b2) * grad²
    data = (1 - lr * weight_decay) * data - lr * mean_hat / (sqrt(square_hat) + eps)
    mean_hat = mean / (1 - b1^steps),   square_hat = square / (1 - b2^steps)

    Args:
        rows: one for each parameter; its state is the mean and the square.
        lr: learning rate. betas: b1, b2. eps: keeps the quotient finite.
        steps: the number of this one, from 1.
        skip: a boolean scalar array beside the parameters; where it is true nothing changes.
    Source: Loshchilov and Hutter 2019 (arXiv:1711.05101).
    """
    beta1, beta2 = betas
    for data, grad, (mean, square), weight_decay in rows:
        xp = get_array_module(square)
        new_mean = mean + (1.0 - beta1) * (grad - mean)
        new_square = square + (1.0 - beta2) * (grad * grad - square)
        mean_hat = new_mean / (1.0 - beta1**steps)
        root_hat = xp.sqrt(new_square / (1.0 - beta2**steps))
        _replace(mean, new_mean, skip)
        _replace(square, new_square, skip)
        _replace(data, (1.0 - lr * weight_decay) * data - lr * mean_hat / (root_hat + eps), skip)


def _replace(old: Array, new: Array, skip: Array | None) -> None:
    # No product with 0 or 1 in place of `where`: new values that are not finite would stay.
    old[...] = new if skip is None else get_array_module(old).where(skip, old, new)


def clip(gradients: Sequence[Array], max_norm: float) -> Array:
    """Scale all gradients down together, in place, so that their Euclidean norm is at most max_norm.

    gradients *= max_norm / norm where norm > max_norm, else 1

    Args:
        gradients: of one dtype; their squares are summed in it.
        max_norm: above 0.
    Returns:
        the norm before, a float64 scalar array beside the gradients.
    Source: Pascanu, Mikolov and Bengio 2013 (arXiv:1211.5063).
    """
    xp = get_array_module(*gradients)
    norm = xp.sqrt(sum((gradient * gradient).sum() for gradient in gradients).astype("float64"))
    # Exactly 1 for a short norm, and for one that is NaN.
    factor = max_norm / xp.where(norm > max_norm, norm, max_norm)
    for gradient in gradients:
        gradient *= factor.astype(gradient.dtype)
    return norm


def unscale(gradients: Sequence[Array], scale: Array) -> Array:
    """Divide all gradients by the scale that their loss was multiplied by, in place.

    Args:
        gradients: one for each parameter.
        scale: a float32 scalar array beside them, above 0.
    Returns:
        whether any of them is not finite: a boolean scalar array.
    """
    xp = get_array_module(scale, *gradients)
    finite = xp.stack([xp.isfinite(gradient).all() for gradient in gradients]).all()
    for gradient in gradients:
        gradient /= scale
    return ~finite

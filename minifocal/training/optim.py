"""Optimizers: they read `Parameter.grad` and change `Parameter.data`; and the clipping of gradients."""

import math
from typing import Any

from minifocal.arrays import Array, get_array_module
from minifocal.errors import InputError
from minifocal.layers.base import Layer, Parameter
from minifocal.threads import over_items


class Optimizer:
    """Base of the optimizers.

    Weight decay spares vectors: biases, norms and layer scales set levels and scales, and pulling those to zero
    regularises nothing.

    Args:
        model: whose parameters to update. Move it to its device first: the state is made beside them.
        lr: learning rate; a schedule may set the attribute before each step.
        weight_decay: lambda.
        decay_all: decay vectors too.
    Raises:
        InputError: an lr or weight decay that is negative or not finite.
    """

    slots: tuple[str, ...] = ()  # names of the arrays kept for each parameter

    def __init__(self, model: Layer, *, lr: float, weight_decay: float, decay_all: bool) -> None:
        for option, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not 0.0 <= value < math.inf:
                raise InputError(f"{option} must be at least 0 and finite, got {value}")
        self.lr = lr
        self.weight_decay = weight_decay
        self.decay_all = decay_all
        self.steps = 0
        self.ops = model.ops
        self.parameters = dict(model.named_parameters())
        self.state = {
            name: {slot: _zeros_like(parameter.data) for slot in self.slots}
            for name, parameter in self.parameters.items()
        }

    def step(self) -> None:
        """Update every parameter once, by its gradient."""
        self.steps += 1
        if self.ops.threaded:
            over_items(self._step, list(self.parameters), [p.data.size for p in self.parameters.values()])
        else:
            for name in self.parameters:
                self._step(name)

    def _step(self, name: str) -> None:
        parameter, state = self.parameters[name], self.state[name]
        get_array_module(parameter.data, *state.values())  # the model was moved after this was made
        decay = self.weight_decay if self.decay_all or parameter.data.ndim > 1 else 0.0
        self._update(parameter, state, decay)

    def _update(self, parameter: Parameter, state: dict[str, Array], decay: float) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Array]:
        """Give the arrays kept between steps, as "parameter.slot": the arrays themselves, not copies."""
        return {f"{name}.{slot}": a for name, slots in self.state.items() for slot, a in slots.items()}

    def check_state_dict(self, state: dict[str, Array]) -> None:
        """Refuse arrays that are not those of this optimizer.

        Raises:
            InputError: the names or shapes are of another optimizer or network.
        """
        own = self.state_dict()
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            raise InputError(f"this state is not of {type(self).__name__} over this network; use the same options")

    def load_state_dict(self, state: dict[str, Array], steps: int) -> None:
        """Copy in what `state_dict` gave, and how many steps had been made. Raises as check_state_dict."""
        self.check_state_dict(state)
        for name, array in self.state_dict().items():
            array[...] = get_array_module(array).asarray(state[name])
        self.steps = steps


class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

        g = grad + lambda * data,   v = momentum * v + g,   data -= lr * v

    With Nesterov's momentum the step looks ahead: data -= lr * (g + momentum * v).

    Args:
        model, lr, weight_decay, decay_all: as in Optimizer.
        momentum: in [0, 1). nesterov: look ahead.
    Raises:
        InputError: as Optimizer, or a momentum outside [0, 1).
    Source: Sutskever et al. 2013 (Proceedings of Machine Learning Research 28(3), 1139-1147).
    """

    slots = ("velocity",)

    def __init__(
        self,
        model: Layer,
        lr: float,
        *,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 5e-4,
        decay_all: bool = False,
    ) -> None:
        super().__init__(model, lr=lr, weight_decay=weight_decay, decay_all=decay_all)
        if not 0.0 <= momentum < 1.0:
            raise InputError(f"momentum must lie in [0, 1), got {momentum}")
        self.momentum = momentum
        self.nesterov = nesterov

    def _update(self, parameter: Parameter, state: dict[str, Array], decay: float) -> None:
        self.ops.sgd_update(
            parameter.data,
            parameter.grad,
            state["velocity"],
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=decay,
        )


class AdamW(Optimizer):
    """Adam with decoupled weight decay.

        m = b1 * m + (1 - b1) * grad,   v = b2 * v + (1 - b2) * grad²
        data = (1 - lr * lambda) * data - lr * m_hat / (sqrt(v_hat) + eps),   m_hat = m / (1 - b1^t), v_hat likewise

    Args:
        model, lr, weight_decay, decay_all: as in Optimizer.
        betas: b1, b2, in [0, 1). eps: keeps the quotient finite.
    Raises:
        InputError: as Optimizer, or betas outside [0, 1).
    Source: Loshchilov and Hutter 2019 (arXiv:1711.05101).
    """

    slots = ("mean", "square")

    def __init__(
        self,
        model: Layer,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.05,
        decay_all: bool = False,
    ) -> None:
        super().__init__(model, lr=lr, weight_decay=weight_decay, decay_all=decay_all)
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise InputError(f"betas must lie in [0, 1), got {betas}")
        self.betas = betas
        self.eps = eps

    def _update(self, parameter: Parameter, state: dict[str, Array], decay: float) -> None:
        self.ops.adamw_update(
            parameter.data,
            parameter.grad,
            state["mean"],
            state["square"],
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=decay,
            steps=self.steps,
        )


OPTIMIZERS: dict[str, Any] = {"sgd": SGD, "adamw": AdamW}


def clip_gradients(model: Layer, max_norm: float) -> float:
    """Scale all gradients down together so that their Euclidean norm is at most max_norm.

    Returns:
        the norm before clipping.
    Raises:
        InputError: max_norm is not above 0.
    Source: Pascanu, Mikolov and Bengio 2013 (arXiv:1211.5063).
    """
    if not max_norm > 0.0:
        raise InputError(f"the largest norm of the gradients must be above 0, got {max_norm}")
    parameters = list(model.parameters())
    # One sum, one float: a float of every parameter's share would wait for a device hundreds of times.
    norm = math.sqrt(float(sum((parameter.grad * parameter.grad).sum() for parameter in parameters)))
    if norm > max_norm:
        for parameter in parameters:
            parameter.grad *= max_norm / norm
    return norm


def _zeros_like(array: Array) -> Array:
    return get_array_module(array).zeros(array.shape, dtype=array.dtype)

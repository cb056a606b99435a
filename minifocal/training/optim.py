"""Optimizers: they read `Parameter.grad` and change `Parameter.data`; and the clipping of gradients."""

import math
from typing import Any

from minifocal.arrays import Array, beside, get_array_module
from minifocal.errors import InputError
from minifocal.functional.updates import UpdateRow
from minifocal.layers.base import Layer


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
        self._rows: list[UpdateRow] = []
        self._decays: tuple[float, bool] | None = None

    def step(self, skip: Array | None = None) -> None:
        """Update every parameter once, by its gradient.

        Args:
            skip: a boolean scalar array beside the parameters; where it is true neither they nor the state change. Such
                a step is counted all the same: `steps` is known without waiting for a device. So AdamW corrects its
                mean and square for more steps than they have seen, which makes the next few steps a little shorter.
        Raises:
            TypeError: the model was moved to another device after this was made.
        """
        rows = self._current_rows()
        self.steps += 1
        self._update(rows, skip)

    def _current_rows(self) -> list[UpdateRow]:
        """Give the rows: the same list until an array is replaced or the weight decay set anew."""
        decays = self.weight_decay, self.decay_all
        if decays != self._decays or any(
            row.data is not parameter.data or row.grad is not parameter.grad
            for row, parameter in zip(self._rows, self.parameters.values(), strict=True)
        ):
            self._rows = self._make_rows()
            self._decays = decays
        return self._rows

    def _make_rows(self) -> list[UpdateRow]:
        rows = []
        for name, parameter in self.parameters.items():
            decay = self.weight_decay if self.decay_all or parameter.data.ndim > 1 else 0.0
            rows.append(UpdateRow(parameter.data, parameter.grad, tuple(self.state[name].values()), decay))
        get_array_module(*(array for row in rows for array in (row.data, row.grad, *row.state)))  # of one home
        return rows

    def _update(self, rows: list[UpdateRow], skip: Array | None) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Array]:
        """Give the arrays kept between steps, as "parameter.slot": the arrays themselves, not copies."""
        return {f"{name}.{slot}": a for name, slots in self.state.items() for slot, a in slots.items()}

    def check_state_dict(self, state: dict[str, Array]) -> None:
        """Refuse arrays that are not those of this optimizer.

        Raises:
            InputError: the names, shapes or dtypes are of another optimizer or network.
        """
        own = self.state_dict()
        kinds, theirs = ({name: (a.shape, str(a.dtype)) for name, a in arrays.items()} for arrays in (own, state))
        if kinds != theirs:
            raise InputError(f"this state is not of {type(self).__name__} over this network; use the same options")

    def load_state_dict(self, state: dict[str, Array], steps: int) -> None:
        """Copy in what `state_dict` gave, and how many steps had been made. Raises as check_state_dict."""
        self.check_state_dict(state)
        for name, array in self.state_dict().items():
            array[...] = beside(state[name], array)
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

    def _update(self, rows: list[UpdateRow], skip: Array | None) -> None:
        self.ops.sgd_update(rows, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, skip=skip)


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

    def _update(self, rows: list[UpdateRow], skip: Array | None) -> None:
        self.ops.adamw_update(rows, lr=self.lr, betas=self.betas, eps=self.eps, steps=self.steps, skip=skip)


OPTIMIZERS: dict[str, Any] = {"sgd": SGD, "adamw": AdamW}


def clip_gradients(model: Layer, max_norm: float) -> Array:
    """Scale all gradients down together so that their Euclidean norm is at most max_norm.

    Returns:
        the norm before clipping: a float64 scalar, beside the gradients.
    Raises:
        InputError: max_norm is not above 0.
    Source: Pascanu, Mikolov and Bengio 2013 (arXiv:1211.5063).
    """
    if not max_norm > 0.0:
        raise InputError(f"the largest norm of the gradients must be above 0, got {max_norm}")
    return model.ops.clip([parameter.grad for parameter in model.parameters()], max_norm)


def _zeros_like(array: Array) -> Array:
    return get_array_module(array).zeros(array.shape, dtype=array.dtype)

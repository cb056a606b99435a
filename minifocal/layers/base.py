"""What every layer is: parameters with a name, a forward pass, and a backward pass that adds to their gradients."""

from collections.abc import Callable, Iterator
from copy import copy
from typing import Any

from minifocal.arrays import Array, Generator, get_array_module, to_device
from minifocal.errors import InputError
from minifocal.ops import REFERENCE, Ops


class Parameter:
    """A learned array and the gradient of the loss with respect to it.

    Attributes:
        data: the values.
        grad: same shape and dtype. Backward passes add to it, by `+=` alone; `zero_grad` clears it.
    """

    def __init__(self, data: Array, grad: Array | None = None) -> None:
        self.data = data
        # Zeros, not `zeros_like`: the system maps them without touching memory until they are used.
        self.grad = get_array_module(data).zeros(data.shape, dtype=data.dtype) if grad is None else grad

    @property
    def has_gradient(self) -> bool:
        """Whether `grad` is an array: in a replica it is not before the first gradient."""
        return not isinstance(self.grad, _NoGradientYet)

    def __repr__(self) -> str:
        return f"Parameter(shape={tuple(self.data.shape)}, dtype={self.data.dtype})"


class _NoGradientYet:
    """The start of a sum: the first gradient that is added takes its place, and no zeros are written or read."""

    def __iadd__(self, gradient: Array) -> Array:
        return gradient


def without_gradient(parameter: Parameter) -> Parameter:
    """Give a parameter over the same values, whose gradient begins with the first one that is added."""
    return Parameter(parameter.data, _NoGradientYet())


class Layer:
    """Base of all layers and models.

    A layer holds parameters and other layers as plain attributes; their names are the attributes' names, joined by
    dots, and lists number their items. It stores nothing of a pass: `forward` returns a cache beside its output,
    and `backward` takes it back.

        y, cache = layer.forward(x, rng)     # rng=None: inference, nothing is dropped
        dx = layer.backward(dy, cache)       # and each Parameter.grad has grown by its gradient

    Attributes:
        ops: the table of operations it computes with.
        inline: its parameters are named as if its parent held them, as in published weights.
    """

    inline = False

    def __init__(self, ops: Ops = REFERENCE) -> None:
        self.ops = ops

    def forward(self, x: Array, rng: Generator | None = None) -> tuple[Array, Any]:
        """Compute y and the cache that `backward` needs."""
        raise NotImplementedError

    def backward(self, dy: Array, cache: Any) -> Array:
        """Give dx, the gradient with respect to x, and add to the gradient of every parameter."""
        raise NotImplementedError

    def __call__(self, x: Array) -> Array:
        """Infer: y alone; nothing is dropped, no cache is kept."""
        return self.forward(x)[0]

    def children(self) -> Iterator[tuple[str, "Layer"]]:
        """Go through the layers held directly, with their names, in the order in which they were set."""
        for name, part in self._parts():
            if isinstance(part, Layer):
                yield name, part

    def layers_inside(self) -> Iterator["Layer"]:
        """Go through this layer and all layers inside it."""
        yield self
        for _, child in self.children():
            yield from child.layers_inside()

    def use_ops(self, ops: Ops) -> None:
        """Compute with another table of operations, here and in all layers inside."""
        for layer in self.layers_inside():
            layer.ops = ops

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Go through all parameters, with their dotted names, in the order in which they were set."""
        for name, part in self._parts():
            if isinstance(part, Parameter):
                yield prefix + name, part
            else:
                yield from part.named_parameters(prefix if part.inline else f"{prefix}{name}.")

    def parameters(self) -> Iterator[Parameter]:
        """Go through all parameters."""
        return (parameter for _, parameter in self.named_parameters())

    def count_parameters(self) -> int:
        """Count the learned numbers."""
        return sum(parameter.data.size for parameter in self.parameters())

    def zero_grad(self) -> None:
        """Set every gradient to zero: backward passes only ever add."""
        for parameter in self.parameters():
            parameter.grad[...] = 0

    def replica(
        self, made: dict[int, Any] | None = None, parameter: Callable[[Parameter], Parameter] = without_gradient
    ) -> "Layer":
        """Give the same layers over the same values, with gradients of their own, which begin with the first one added.

        One for each thread lets threads share a model. It is for one step: what is set on this layer later does not
        reach it.

        Args:
            made: parameters and layers that have a replica already, by identity: what is shared stays shared.
            parameter: makes what stands for a parameter there.
        """
        made = {} if made is None else made
        twin = made[id(self)] = copy(self)
        for name, value in vars(self).items():
            setattr(twin, name, _replica(value, made, parameter))
        return twin

    def check_input(self, x: Array) -> None:
        """Refuse what `forward` would refuse, before a batch is taken apart."""

    def shard_size(self, shape: tuple[int, ...]) -> int:
        """Choose how many images of a batch of this shape a thread computes at a time: its share, if not overridden."""
        return shape[0]

    def to_device(self, device: str) -> None:
        """Move every parameter and its gradient to "cpu", "cuda" or "cuda:N"."""
        for parameter in self.parameters():
            parameter.data = to_device(parameter.data, device)
            parameter.grad = to_device(parameter.grad, device)

    def state_dict(self) -> dict[str, Array]:
        """Give the values of all parameters by name: the arrays themselves, not copies."""
        return {name: parameter.data for name, parameter in self.named_parameters()}

    def check_state_dict(self, state: dict[str, Array]) -> None:
        """Refuse values that are not exactly those of this layer's parameters.

        Raises:
            InputError: a name is missing or unknown, or a shape or dtype differs; the message lists them.
        """
        own = self.state_dict()
        problems = [f"missing {name}" for name in own.keys() - state.keys()]
        problems += [f"unknown {name}" for name in state.keys() - own.keys()]
        for name in own.keys() & state.keys():
            here, there = (f"{tuple(array.shape)} {array.dtype}" for array in (own[name], state[name]))
            if here != there:
                problems.append(f"{name} is {here} here and {there} there")
        if problems:
            shown = "; ".join(sorted(problems)[:6])
            more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
            raise InputError(f"these weights are of another network: {shown}{more}")

    def load_state_dict(self, state: dict[str, Array]) -> None:
        """Copy values into all parameters; nothing is changed unless everything fits.

        Raises:
            InputError: as check_state_dict.
        """
        self.check_state_dict(state)
        own = dict(self.named_parameters())
        values = {name: get_array_module(p.data).asarray(state[name]) for name, p in own.items()}
        for name, parameter in own.items():
            parameter.data[...] = values[name]

    def describe(self) -> dict[str, Any]:
        """Give what it takes to build this layer again, for a checkpoint: plain numbers and strings."""
        return {}

    def _parts(self) -> Iterator[tuple[str, Any]]:
        """The parameters and layers set as attributes, items of lists included."""
        for name, value in vars(self).items():
            yield from _named(name, value)


def _replica(value: Any, made: dict[int, Any], parameter: Callable[[Parameter], Parameter]) -> Any:
    if isinstance(value, Parameter | Layer):
        if id(value) not in made:
            made[id(value)] = parameter(value) if isinstance(value, Parameter) else value.replica(made, parameter)
        return made[id(value)]
    if isinstance(value, list | tuple):
        items = [_replica(item, made, parameter) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _named(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Parameter | Layer):
        yield name, value
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _named(f"{name}.{index}", item)

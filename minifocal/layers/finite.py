"""Looking for the first number that is not finite: which layer made it, on the way forward or back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from minifocal.arrays import Array, as_numpy, get_array_module
from minifocal.layers.base import Layer, Parameter


class NotFiniteError(ArithmeticError):
    """An infinity or a NaN came up; the message, one line, says where first, and from what."""


@contextmanager
def check_finite(model: Layer, *, gradients: bool = True) -> Iterator[None]:
    """Look at what every layer of a model takes and gives, as long as the `with` block lasts.

        with mf.check_finite(model):
            mf.train_step(model, optimizer, images, labels, rng)

    The numbers are those without it, bit for bit; every layer's are read once more, and on a device each look waits
    for it. A layer that made infinity or NaN out of finite numbers is named by its path of attributes. What a model
    computes between its layers is put down to the layer around: a residual sum to its block. A StepGraph refuses a
    model that is looked into.

    Where threads share a batch, an index counts from the first image of those that were computed together; of several
    faults the one in the earliest images is told.

    Args:
        model: any layer; `replica` of it, as threads use, is looked at too.
        gradients: look at the way back too. Leave it out where gradients may overflow, and the step is skipped then:
            in float16, with a LossScaler.
    Raises:
        NotFiniteError: at the first layer whose output, gradient with respect to its input, or gradient of a parameter
            is not finite.
    """
    kinds = []
    try:
        for layer, place in list(_places(model, _Place("", "", gradients))):
            if not isinstance(layer, _Watched):  # shared by two layers, or watched from outside already
                kind = type(layer)
                # Another class, not other methods: a replica, a copy, has it too and computes with its own parts.
                layer.__class__ = type(kind.__name__, (_Watched, kind), {})
                kinds.append((layer, kind))
                layer._place = place  # type: ignore[attr-defined]
        yield
    finally:
        for layer, kind in kinds:
            layer.__class__ = kind
            del layer._place  # type: ignore[attr-defined]


def is_looked_into(model: Layer) -> bool:
    """Whether `check_finite` looks at this model."""
    return isinstance(model, _Watched)


class _Place(NamedTuple):
    """Where a layer stands, and what to look at there."""

    path: str  # of attributes from the model, which has the empty one
    around: str  # path of the layer that holds it
    gradients: bool


def _places(layer: Layer, place: _Place) -> Iterator[tuple[Layer, _Place]]:
    yield layer, place
    for name, child in layer.children():
        yield from _places(child, _Place(f"{place.path}.{name}" if place.path else name, place.path, place.gradients))


class _Watched(Layer):
    """Stands in front of a layer's own class and looks at what goes through."""

    _place: _Place

    def forward(self, *inputs: Any, **options: Any) -> Any:
        given = _arrays(inputs)
        if not self._place.path:
            self.check_input(inputs[0])  # which names the image, and says what to do
        if fault := _fault(given):
            raise self._error("input", fault, self._maker("the operations of {} between its layers", "the caller"))
        y, cache = super().forward(*inputs, **options)
        if fault := _fault([y]):
            raise self._error("output", fault, f"its input was finite{_largest(given)}{self._faulty_parameters()}")
        return y, cache

    def backward(self, dy: Array, cache: Any) -> Any:
        if not self._place.gradients:
            return super().backward(dy, cache)
        if fault := _fault([dy]):
            maker = self._maker("the way back of {} between its layers", "the loss")
            raise self._error("gradient with respect to its output", fault, maker)
        dx = super().backward(dy, cache)
        gradients = {"gradient with respect to its input": _arrays(dx)}
        gradients |= {f"gradient of its {name}": [p.grad] for name, p in self._near_parameters() if p.has_gradient}
        for name, arrays in gradients.items():
            if fault := _fault(arrays):
                came = f"what came back to its output was finite{_largest([dy])}"
                raise self._error(name, fault, f"{came}{self._faulty_parameters()}")
        return dx

    def _error(self, what: str, fault: str, circumstances: str) -> NotFiniteError:
        return NotFiniteError(f"{self._place.path or 'the model'}: {what} not finite ({fault}); {circumstances}")

    def _maker(self, inside: str, outside: str) -> str:
        """Say who made what a layer was given: the layer around it, or, of the whole model, somebody else."""
        around = self._place.around or "the model"
        return f"made by {inside.format(around) if self._place.path else outside}"

    def _faulty_parameters(self) -> str:
        """Name the first parameter near that is not finite itself: it was so before this pass."""
        for name, parameter in self._near_parameters():
            if fault := _fault([parameter.data]):
                return f", but its {name} was not ({fault})"
        return ""

    def _near_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """The parameters held directly, and those of layers held directly: one operation may go past several layers."""
        for name, part in self._parts():
            if isinstance(part, Parameter):
                yield name, part
            else:
                yield from ((f"{name}.{own}", p) for own, p in part._parts() if isinstance(p, Parameter))


def _arrays(given: Any) -> list[Array]:
    parts = given if isinstance(given, tuple) else (given,)
    return [part for part in parts if hasattr(part, "shape")]


def _fault(arrays: list[Array]) -> str:
    """Say what is not finite first in arrays, where, and how much of it there is; nothing where all is finite."""
    for array in arrays:
        if not bool(get_array_module(array).isfinite(array).all()):
            host = as_numpy(array)
            xp = get_array_module(host)
            faulty = ~xp.isfinite(host)
            at = tuple(int(index) for index in xp.unravel_index(faulty.argmax(), faulty.shape))
            count = faulty.sum()
            others = f", first of {count}" if count > 1 else ""
            return f"{host[at]} at {list(at)} of shape {tuple(host.shape)}{others}"
    return ""


def _largest(arrays: list[Array]) -> str:
    largest = [float(abs(array).max()) for array in arrays if array.size]
    return f", at most {max(largest):.3g} in size" if largest else ""

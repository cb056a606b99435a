"""One call of a learner's function: what goes in, what must come out, and which mistakes are usual."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from minifocal.arrays import Array, random_generator
from minifocal.gradcheck import numeric_gradients

SEED = 1618


class Suspect(NamedTuple):
    """A usual mistake: what the result would be, and what to say about it."""

    result: str
    value: Array
    cause: str


@dataclass(frozen=True)
class Case:
    """One call of a learner's function.

    Attributes:
        sizes: the shape letters and their values.
        arguments: by name, in the order in which the function takes them.
        expected: the results by name, in the order in which the function gives them.
        upstream: the arguments in which the results are linear.
        suspects: usual mistakes.
        numeric: whether `expected` holds differences of the forward pass; the library's values otherwise.
    """

    sizes: Mapping[str, int]
    arguments: Mapping[str, Any]
    expected: Mapping[str, Array]
    upstream: tuple[str, ...] = ()
    suspects: tuple[Suspect, ...] = ()
    numeric: bool = True
    known: Mapping[str, Array] = field(default_factory=dict)  # what a result may be missing or have too much

    @property
    def title(self) -> str:
        """The sizes, in words."""
        return ", ".join(f"{letter}={size}" for letter, size in self.sizes.items())


class Draws:
    """Standard normal arrays, the same ones in every check."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random_generator(SEED, seed)

    def __call__(self, *shape: int) -> Array:
        """Draw an array."""
        return self.rng.standard_normal(shape)


def as_given(dy: Array) -> Array:
    """Give the upstream gradient as it is."""
    return dy


def gradient_case(
    sizes: Mapping[str, int],
    forward: Callable[..., tuple[Array, Any]],
    arrays: Mapping[str, Array],
    arguments: Mapping[str, Any],
    *,
    draw: Draws,
    upstream: tuple[str, ...] = ("dy",),
    suspects: Callable[[Array], tuple[Suspect, ...]] | None = None,
    values: Mapping[str, Array] | None = None,
) -> Case:
    """Make a case whose results are gradients, known by the complex step through a forward function.

    Args:
        sizes: shape letters.
        forward: (*arrays) -> (y, cache), in float64.
        arrays: what is differentiated, by name; the results are called d<name>, in this order.
        arguments: the learner's, by name; where one is a function, it is called with the upstream gradient dy.
        draw: draws dy.
        upstream: the arguments that hold dy.
        suspects: usual mistakes, for dy.
        values: results that come before the gradients.
    """
    y, _ = forward(*arrays.values())
    dy = draw(*y.shape)
    gradients = numeric_gradients(forward, arrays, dy, method="complex")
    return Case(
        sizes=sizes,
        arguments={name: value(dy) if callable(value) else value for name, value in arguments.items()},
        expected={**(values or {}), **{f"d{name}": gradient for name, gradient in gradients.items()}},
        upstream=upstream,
        suspects=() if suspects is None else suspects(dy),
    )

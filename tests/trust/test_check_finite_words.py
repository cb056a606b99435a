"""What check_finite says, to the last number, of layers as small as can be."""

from dataclasses import replace

import numpy as np
import pytest
from whole_networks import batch, build

import minifocal as mf
from minifocal.arrays import random_generator
from minifocal.layers.base import Layer, Parameter
from minifocal.ops import Op

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # what is looked for here


class Gives(Layer):
    """Gives what it is told to, on the way forward and back; it may hold parameters and other layers."""

    def __init__(self, y=1.0, dx=1.0, **parts):
        super().__init__()
        self.y, self.dx = np.array(y), dx if isinstance(dx, tuple) else np.array(dx)
        vars(self).update(parts)

    def forward(self, *inputs, rng=None):
        return self.y, rng

    def backward(self, dy, cache):
        return self.dx


class Around(Layer):
    """Holds a layer, and changes what goes to it."""

    def __init__(self, inner, change):
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, x, rng=None):
        return self.inner.forward(self.change(x))


def fault_of(model, *inputs):
    """What is said on the way forward."""
    with pytest.raises(mf.NotFiniteError) as caught, mf.check_finite(model):
        model.forward(*inputs)
    return str(caught.value)


def fault_back(model, dy=1.0):
    """What is said on the way back."""
    with pytest.raises(mf.NotFiniteError) as caught, mf.check_finite(model):
        model.backward(np.array(dy), None)
    return str(caught.value)


@pytest.mark.parametrize(
    ("y", "told"),
    [
        ([1.0, np.nan], "nan at [1] of shape (2,)"),
        ([[1.0, 2.0, np.inf], [np.nan, 4.0, 5.0]], "inf at [0, 2] of shape (2, 3), first of 2"),
        (-np.inf, "-inf at [] of shape ()"),
    ],
)
def test_the_first_fault_is_told_with_its_place_and_the_number_of_all(y, told):
    assert fault_of(Gives(y), np.ones(3)) == (
        f"the model: output not finite ({told}); its input was finite, at most 1 in size"
    )


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ([np.array([2.0, -7.25])], ", at most 7.25 in size"),
        ([np.array([3.0]), np.array([-5.0, 1.0]), np.array([4.0])], ", at most 5 in size"),
        ([np.ones((0, 3))], ""),
        ([np.ones((0, 3)), np.array(0.5)], ", at most 0.5 in size"),
        ([None], ""),
    ],
    ids=["negative", "several", "empty", "empty beside another", "none"],
)
def test_the_size_of_what_went_in_is_that_of_the_largest_number_of_all(inputs, told):
    assert fault_of(Gives(np.nan), *inputs).endswith(f"; its input was finite{told}")


@pytest.mark.parametrize("other", [(), (np.array([1.0, 2.0]),)], ids=["alone", "beside another"])
def test_the_gradient_of_an_input_is_told_with_its_place(other):
    dx = np.array([[1.0, 2.0, 3.0], [4.0, np.inf, 6.0]])
    assert fault_back(Gives(dx=(*other, dx) if other else dx), [-2.0]) == (
        "the model: gradient with respect to its input not finite (inf at [1, 1] of shape (2, 3)); what came back to "
        "its output was finite, at most 2 in size"
    )


def test_what_a_layer_does_between_those_it_holds_is_put_down_to_it():
    inner = Gives()
    assert fault_of(Around(inner, lambda x: x * np.inf), np.ones(2)) == (
        "inner: input not finite (inf at [0] of shape (2,), first of 2); made by the operations of the model between "
        "its layers"
    )
    assert fault_of(Around(Around(inner, lambda x: x * np.inf), lambda x: x), np.ones(2)) == (
        "inner.inner: input not finite (inf at [0] of shape (2,), first of 2); made by the operations of inner "
        "between its layers"
    )


def test_a_network_within_another_layer_is_a_layer_like_others():
    """Only what a user gives is refused as an input; what a layer gives is a fault of the layer."""
    model = Around(build("focal"), lambda x: x * np.float32(np.nan))
    assert fault_of(model, batch()[0]).startswith("inner: input not finite (nan at [0, 0, 0, 0] of shape (7, 2, 12, 8)")


def test_parameters_are_named_down_to_those_of_layers_held_directly():
    def parameter(value):
        return Parameter(np.array([1.0, value]))

    for value, told in ((np.nan, "nan"), (-np.inf, "-inf")):
        own = Gives(np.nan, scale=parameter(value))
        held = Gives(np.nan, fine=parameter(0.0), conv=Gives(weight=parameter(value)))
        far = Gives(np.nan, conv=Gives(part=Gives(weight=parameter(value))))
        said = f"was not ({told} at [1] of shape (2,))"
        assert fault_of(own, np.ones(2)).endswith(f", at most 1 in size, but its scale {said}")
        assert fault_of(held, np.ones(2)).endswith(f", at most 1 in size, but its conv.weight {said}")
        assert fault_of(far, np.ones(2)).endswith(", at most 1 in size")


def test_a_gradient_that_is_not_there_yet_is_not_looked_at():
    weight, bias = Parameter(np.ones(2)), Parameter(np.ones(3))
    model = Gives(weight=weight, bias=bias)
    with mf.check_finite(model):
        replica = model.replica()
        replica.backward(np.ones(2), None)
        assert not replica.weight.has_gradient
    bias.grad[1] = np.inf
    assert fault_back(model).startswith("the model: gradient of its bias not finite (inf at [1] of shape (3,))")


def test_what_is_given_by_name_arrives():
    model, rng = Gives(), random_generator(3)
    with mf.check_finite(model):
        assert model.forward(np.ones(2), rng=rng) == (np.array(1.0), rng)


def test_a_fault_between_the_last_layers_is_put_down_to_the_network():
    model = build("focal")
    pool = model.ops.mean_pool
    model.use_ops(replace(model.ops, mean_pool=Op(lambda x: (np.inf * pool.forward(x)[0], None), pool.backward)))
    assert "head: input not finite" in fault_of(model, batch()[0])


class Fixed(Layer):
    """A layer from which nothing can be derived: no class can stand in front of its own."""

    def __init_subclass__(cls):
        raise TypeError("nothing is derived from it")


def test_where_a_layer_cannot_be_looked_into_the_others_are_let_go_again():
    model = Around(Gives(), lambda x: x)
    model.second = Fixed()
    with pytest.raises(TypeError), mf.check_finite(model):
        pytest.fail("looked into")
    assert (type(model), type(model.inner), type(model.second)) == (Around, Gives, Fixed)

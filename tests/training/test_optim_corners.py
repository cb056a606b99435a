"""Optimizers at their corners: what they refuse, what they take unsaid, what their state is called."""

import math

import numpy as np
import pytest
from strict_array import StrictLibrary

from minifocal.errors import InputError
from minifocal.layers.initializers import get_initializer
from minifocal.layers.linear import Linear
from minifocal.training.optim import SGD, AdamW

INPUTS, OUTPUTS = 4, 3


def linear():
    layer = Linear(INPUTS, OUTPUTS, init=get_initializer("lecun", 0, "float64"))
    rng = np.random.default_rng(1)
    for parameter in layer.parameters():
        parameter.grad[...] = rng.standard_normal(parameter.grad.shape)
    return layer


@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_a_rate_must_be_finite_and_the_learning_rate_is_looked_at_first(optimizer):
    for value in (math.inf, math.nan, -1e-9):
        with pytest.raises(InputError, match=f"lr must be at least 0 and finite, got {value}"):
            optimizer(linear(), lr=value, weight_decay=value)
        with pytest.raises(InputError, match=f"weight_decay must be at least 0 and finite, got {value}"):
            optimizer(linear(), lr=0.0, weight_decay=value)


def test_zero_is_a_momentum_and_a_beta_and_one_is_none():
    assert SGD(linear(), 0.1, momentum=0.0).momentum == 0.0
    assert AdamW(linear(), betas=(0.0, 0.0)).betas == (0.0, 0.0)
    with pytest.raises(InputError, match=r"momentum must lie in \[0, 1\)"):
        SGD(linear(), 0.1, momentum=1.0)
    for betas in ((1.0, 0.999), (0.9, 1.0), (0.9, 1.2), (-0.1, 0.999)):
        with pytest.raises(InputError, match=r"betas must lie in \[0, 1\)"):
            AdamW(linear(), betas=betas)


def test_what_is_not_said_is_as_the_docstrings_have_it():
    sgd, adamw = SGD(linear(), 0.1), AdamW(linear())
    assert (sgd.momentum, sgd.nesterov, sgd.weight_decay, sgd.decay_all) == (0.9, True, 5e-4, False)
    assert (adamw.lr, adamw.betas, adamw.eps) == (1e-3, (0.9, 0.999), 1e-8)
    assert (adamw.weight_decay, adamw.decay_all) == (0.05, False)


def test_each_state_stands_under_its_own_name():
    layer = linear()
    optimizer = AdamW(layer, betas=(0.75, 0.5))
    optimizer.step()
    state = optimizer.state_dict()
    for name, parameter in layer.named_parameters():
        np.testing.assert_array_equal(state[f"{name}.mean"], 0.25 * parameter.grad)
        np.testing.assert_array_equal(state[f"{name}.square"], 0.5 * parameter.grad**2)


def test_one_array_of_another_shape_makes_another_state():
    optimizer = SGD(linear(), 0.1)
    state = {**optimizer.state_dict(), "bias.velocity": np.zeros(OUTPUTS + 1)}
    with pytest.raises(InputError, match="this state is not of SGD over this network"):
        optimizer.load_state_dict(state, 1)


@pytest.mark.parametrize("moved", ["data", "grad"])
def test_an_array_that_was_moved_alone_is_noticed(moved):
    layer = linear()
    optimizer = SGD(layer, 0.1)
    setattr(layer.weight, moved, StrictLibrary().asarray(getattr(layer.weight, moved)))
    with pytest.raises(TypeError, match="two homes: "):
        optimizer.step()


def test_a_state_from_the_host_is_loaded_beside_the_parameters():
    layer, library = linear(), StrictLibrary()
    host = SGD(layer, 0.1)
    host.step()
    for parameter in layer.parameters():
        parameter.data, parameter.grad = library.asarray(parameter.data), library.asarray(parameter.grad)
    there = SGD(layer, 0.1)
    there.load_state_dict(host.state_dict(), 1)
    for name, array in host.state_dict().items():
        np.testing.assert_array_equal(there.state_dict()[name].get(), array)

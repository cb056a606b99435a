"""Loss scaling at its corners: the numbers that the docstrings name, and exactly which states are taken."""

import math

import numpy as np
import pytest
from strict_array import StrictLibrary

from minifocal.errors import InputError
from minifocal.layers.initializers import get_initializer
from minifocal.layers.linear import Linear
from minifocal.training import loss_scale
from minifocal.training.loss_scale import LARGEST, LEAST, START, LossScaler


def linear(library=None):
    layer = Linear(4, 3, init=get_initializer("lecun", 0, "float32"))
    if library is not None:
        for parameter in layer.parameters():
            parameter.data, parameter.grad = library.asarray(parameter.data), library.asarray(parameter.grad)
    return layer


def state(scale=START, good_steps=0, **others):
    return {"scale": np.array(scale, "float32"), "good_steps": np.array(good_steps, "int32"), **others}


def values(scaler):
    return {name: array.item() for name, array in scaler.state_dict().items()}


def test_the_scale_begins_at_2_to_the_15_and_stays_within_2_to_the_24_either_way():
    assert (START, LEAST, LARGEST) == (32768.0, 1 / 16777216, 16777216.0)
    assert loss_scale.GROW_AFTER == 2000
    scaler = LossScaler(linear())
    assert values(scaler) == {"scale": 32768.0, "good_steps": 0}
    assert (scaler.scale.dtype, scaler.good_steps.dtype) == ("float32", "int32")


def test_two_thousand_good_steps_double_the_scale_and_one_less_does_not():
    layer = linear()
    scaler = LossScaler(layer)
    for good_steps, expected in ((1998, (START, 1999)), (1999, (2 * START, 0))):
        scaler.load_state_dict(state(START, good_steps))
        assert not scaler.unscale(layer)
        assert tuple(values(scaler).values()) == expected


@pytest.mark.parametrize("taken", [(LEAST, 0), (LARGEST, 0), (START, 1), (1.0, 1999)])
def test_a_state_at_the_limits_is_taken(taken):
    scaler = LossScaler(linear())
    scaler.load_state_dict(state(*taken))
    assert tuple(values(scaler).values()) == taken


@pytest.mark.parametrize(
    "wrong",
    [
        state(LEAST / 2),
        state(2 * LARGEST),
        state(-START),
        state(math.nan),
        state(START, -1),
        state(start=np.array(1.0)),
        {"scale": np.array(START, "float32")},
        {**state(), "scale": np.array(START)},
        {**state(), "good_steps": np.array(0)},
        {**state(), "good_steps": np.zeros(1, "int32")},
        {},
    ],
    ids=["too small", "too large", "negative", "nan", "negative steps", "one more", "one less", "float64", "int64",
         "no scalar", "nothing"],
)  # fmt: skip
def test_a_state_beyond_the_limits_is_refused_and_nothing_changes(wrong):
    scaler = LossScaler(linear())
    for refuse in (scaler.check_state_dict, scaler.load_state_dict):
        with pytest.raises(InputError, match="this is not the state of a LossScaler; train anew"):
            refuse(wrong)
    assert values(scaler) == {"scale": START, "good_steps": 0}


def test_the_state_lies_beside_the_parameters_also_when_it_comes_from_the_host():
    library = StrictLibrary()
    scaler = LossScaler(linear(library))
    scaler.load_state_dict(state(2.0, 5))
    assert [array.get().item() for array in scaler.state_dict().values()] == [2.0, 5]
    assert library.to_device[-2:] == [(), ()]

"""A fast operation refuses what its twin refuses, in the same words."""

import numpy as np
import pytest

from minifocal.errors import InputError
from minifocal.ops import REFERENCE, get_ops, list_ops

B, H, W, C = 2, 5, 4, 3
MAP = (B, H, W, C)


def zeros(*shapes):
    return [np.zeros(shape) for shape in shapes]


REFUSED = [
    ("linear", zeros((2, 4), (3, 5), (5,))),
    ("linear", zeros((2, 3), (3, 5), (4,))),
    ("layer_norm", zeros((2, 4), (3,), (3,))),
    ("layer_norm", zeros((2, 4), (4,), (1,))),
    ("depthwise_conv", zeros((B, H, W, 6), (3, 3, C))),
    ("depthwise_conv", zeros((H, W, C), (3, 3, C))),
    ("depthwise_conv", zeros(MAP, (4, 4, C))),
    ("depthwise_conv", zeros(MAP, (3, 5, C))),
    ("focal_level", [*zeros(MAP, (2, 2, C), (B, H, W, 1)), 0.0]),
    ("focal_level", [*zeros(MAP, (3, 3, 7)), None, 0.0]),
    ("focal_level", [*zeros(MAP, (3, 3, C), MAP), 0.0]),
    ("focal_level", [*zeros(MAP, (3, 3, C), (B, W, H, 1)), 0.0]),
    ("focal_level", [*zeros(MAP, (3, 3, C), (1, H, W, 1)), 0.0]),
    ("global_level", [*zeros(MAP, (B, H, 1, 1)), 0.0]),
    ("modulate", zeros(MAP, (B, W, H, C))),
    ("modulate", zeros(MAP, (B, H, W, 1))),
    ("split", [np.zeros(MAP), (1, 1)]),
    ("add", zeros(MAP, (1, H, W, C))),
]


@pytest.mark.parametrize(("name", "inputs"), REFUSED, ids=[name for name, _ in REFUSED])
@pytest.mark.parametrize("table", list_ops()[1:])
def test_what_does_not_fit_is_refused_in_the_same_words(table, name, inputs):
    messages = []
    for ops in (REFERENCE, get_ops(table)):
        with pytest.raises(InputError) as caught:
            getattr(getattr(ops, name), "forward", getattr(ops, name))(*inputs)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("table", list_ops()[1:])
def test_another_librarys_arrays_are_refused(table):
    with pytest.raises(TypeError, match="expected a NumPy or CuPy array, got list"):
        get_ops(table).linear.forward([[1.0]], np.zeros((1, 1)), np.zeros(1))

"""What each operation refuses before it computes: arrays of two homes, and shapes that broadcasting would let pass."""

import re

import numpy as np
import pytest
from strict_array import StrictLibrary

from minifocal.errors import InputError
from minifocal.functional.add import add, check_same_shape
from minifocal.functional.context import check_gate, check_maps, focal_level_forward, global_level_forward
from minifocal.functional.cross_entropy import cross_entropy_forward
from minifocal.functional.depthwise_conv import check_depthwise_conv, depthwise_conv_backward, depthwise_conv_forward
from minifocal.functional.drop_path import drop_path_forward
from minifocal.functional.layer_norm import check_layer_norm, layer_norm_forward
from minifocal.functional.layer_scale import layer_scale_forward
from minifocal.functional.linear import check_linear, linear_forward
from minifocal.functional.modulate import modulate_forward
from minifocal.functional.patches import patches_forward
from minifocal.functional.split import split_forward
from minifocal.functional.updates import unscale

B, H, W, C = 2, 5, 4, 3
MAP = (B, H, W, C)


def focal_level(ctx, weight, gate):
    return focal_level_forward(ctx, weight, gate, 0.0)


def global_level(ctx, gate):
    return global_level_forward(ctx, gate, 0.0)


def conv_back(dz, weight):
    """The way back with a cache whose x is beside dz: only the weight is of another home."""
    return depthwise_conv_backward(dz, (dz, weight))


def unscale_two(scale, first, second):
    return unscale([first, second], scale)


@pytest.mark.parametrize(
    ("operation", "shapes"),
    [
        (add, (MAP, MAP)),
        (modulate_forward, (MAP, MAP)),
        (linear_forward, (MAP, (C, 7), (7,))),
        (layer_norm_forward, (MAP, (C,), (C,))),
        (layer_scale_forward, (MAP, (C,))),
        (depthwise_conv_forward, (MAP, (3, 3, C))),
        (conv_back, (MAP, (3, 3, C))),
        (focal_level, (MAP, (3, 3, C), (B, H, W, 1))),
        (global_level, (MAP, (B, H, W, 1))),
        (unscale_two, ((), (7,), (C, 2))),
        # The other tables of operations call these by themselves.
        (check_same_shape, (MAP, MAP)),
        (check_linear, (MAP, (C, 7), (7,))),
        (check_layer_norm, (MAP, (C,), (C,))),
        (check_depthwise_conv, (MAP, (3, 3, C))),
        (check_gate, (MAP, (B, H, W, 1))),
    ],
)
def test_every_array_must_be_of_the_same_home(operation, shapes):
    for stranger in range(len(shapes)):
        library = StrictLibrary()
        arrays = [library.asarray(np.ones(s)) if i == stranger else np.ones(s) for i, s in enumerate(shapes)]
        with pytest.raises(TypeError, match="two homes: "):
            operation(*arrays)


def test_labels_must_be_of_the_home_of_the_logits():
    with pytest.raises(TypeError, match="two homes: "):
        cross_entropy_forward(np.ones((B, C)), StrictLibrary().asarray(np.array([0, 1])))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: add(x, x[:1]), f"two arrays of one shape, got {MAP} and {(1, H, W, C)}"),
        (lambda x: modulate_forward(x, x[..., :1]), f"two arrays of one shape, got {MAP} and {(B, H, W, 1)}"),
        (lambda x: check_maps(x, 0.0, 1, x[:, :1]), f"two arrays of one shape, got {MAP} and {(B, 1, W, C)}"),
        (lambda x: global_level_forward(x, x, 0.0), f"a gate of shape {(B, H, W, 1)}, got {MAP}"),
        (lambda x: global_level_forward(x, x[:1, ..., :1], 0.0), f"a gate of shape {(B, H, W, 1)}, got {(1, H, W, 1)}"),
        (
            lambda x: focal_level_forward(x, x[0, :3, :3], x[:, :, :1, :1], 0.0),
            f"a gate of shape {(B, H, W, 1)}, got {(B, H, 1, 1)}",
        ),
        (lambda x: layer_norm_forward(x, x[0, 0, 0], x[0, 0, 0, :1]), "layer_norm: expected"),
        (lambda x: layer_norm_forward(x, x[0, 0, 0, :1], x[0, 0, 0, :1]), "layer_norm: expected"),
        (lambda x: linear_forward(x, x[0, 0, :3], x[0, 0, 0, :1]), "a bias of 3"),
        (lambda x: split_forward(x, (1, 1)), "sizes that add up to 3 channels, got (1, 1)"),
        (lambda x: drop_path_forward(x, 1.0, None), "a drop rate must lie in [0, 1), got 1.0"),
        (lambda x: drop_path_forward(x, -0.1, None), "a drop rate must lie in [0, 1), got -0.1"),
        (lambda x: cross_entropy_forward(x[0, 0], np.zeros(W, int), 1.0), "must lie in [0, 1), got 1.0"),
        (lambda x: cross_entropy_forward(x[0, 0], np.zeros(W, int), -0.1), "must lie in [0, 1), got -0.1"),
        (lambda x: patches_forward(x, W + 1, 1), "smaller than one 5 x 5 patch"),
        (lambda x: patches_forward(x.transpose(0, 2, 1, 3), W + 1, 1), "smaller than one 5 x 5 patch"),
    ],
)
def test_what_broadcasting_would_let_pass_is_refused(call, message):
    with pytest.raises(InputError, match=re.escape(message)):
        call(np.ones(MAP))


def test_the_shapes_that_do_not_fit_are_told_in_the_order_of_the_arguments():
    with pytest.raises(InputError, match=re.escape(f"got shapes {MAP}, (3,) and (1,)")):
        layer_norm_forward(np.ones(MAP), np.ones(3), np.ones(1))

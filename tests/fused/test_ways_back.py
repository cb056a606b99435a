"""Gradients of the wrong shape are refused on every way back, as the reference does: kernels look at no bounds."""

import numpy as np
import pytest

from minifocal.errors import InputError
from minifocal.ops import get_ops, list_ops

B, H, W, C = 2, 5, 4, 3
every_table = pytest.mark.parametrize("table", list_ops()[1:])


def draw(*shape):
    return np.random.default_rng(1).standard_normal(shape)


ARGUMENTS = {
    "gelu": (),
    "gelu_tanh": (),
    "sigmoid": (),
    "layer_norm": (draw(C), draw(C)),
    "layer_scale": (draw(C),),
    "modulate": (draw(B, H, W, C),),
    "depthwise_conv": (draw(3, 3, C),),
    "linear": (draw(C, 7), draw(7)),
}


@every_table
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_gradient_of_another_shape_is_refused(name, table):
    op = getattr(get_ops(table), name)
    y, cache = op.forward(draw(B, H, W, C), *ARGUMENTS[name])
    op.backward(np.ones_like(y), cache)
    for wrong in (y[:1], np.concatenate([y, y]), y.transpose(2, 1, 0, 3)[:, :, :1]):
        with pytest.raises(ValueError):  # noqa: PT011  NumPy's own for a product, else the InputError that is one
            op.backward(np.ascontiguousarray(wrong), cache)


@every_table
def test_a_focal_level_refuses_sums_and_gradients_of_another_shape(table):
    level = get_ops(table).focal_level
    ctx, weight, gate, wrong = draw(B, H, W, C), draw(3, 3, C), draw(B, H, W, 1), draw(1, H, W, C)
    with pytest.raises(InputError, match="one shape"):
        level.forward(ctx, weight, gate, wrong)
    with pytest.raises(InputError, match="one shape"):
        get_ops(table).global_level.forward(ctx, gate, wrong)
    _, _, cache = level.forward(ctx, weight, gate, 0.0)
    for dctx, daggregate in ((wrong, ctx), (0.0, wrong)):
        with pytest.raises(InputError, match="one shape"):
            level.backward(dctx, daggregate, cache)


@every_table
def test_maps_that_run_backwards_are_read_in_their_order(table):
    ops, reference = get_ops(table), get_ops("reference")
    weight = draw(3, 3, C)
    for shape in ((1, 1, 6, C), (1, H, 1, C), (B, H, W, C)):
        x = draw(*shape)[::-1, ::-1, ::-1]
        expected, _ = reference.depthwise_conv.forward(x, weight)
        z, _ = ops.depthwise_conv.forward(x, weight)
        np.testing.assert_allclose(z, expected, rtol=0, atol=1e-14)

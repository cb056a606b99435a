"""Mistakes in operations that the properties of the whole are there for: each is seen."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from whole_checks import (
    H,
    W,
    check_linear,
    check_linear_operation,
    check_moved,
    check_order,
    check_parts,
    check_pure,
    check_rounded,
)
from whole_networks import batch, build

from minifocal.ops import REFERENCE, Op


def with_op(name, **ways):
    """The reference with one operation changed."""
    return replace(REFERENCE, **{name: getattr(REFERENCE, name)._replace(**ways)})


def changed(kind="focal", **fields):
    model = build(kind)
    model.use_ops(replace(REFERENCE, **fields))
    return model


def test_a_way_back_that_is_not_linear_is_seen():
    right = REFERENCE.gelu
    bent = Op(right.forward, lambda dy, cache: right.backward(dy + 1e-4 * dy * dy, cache))
    check_linear(build("focal"), batch(count=3)[0], 3, 2)
    with pytest.raises(AssertionError):
        check_linear(changed(gelu=bent), batch(count=3)[0], 3, 2)


def test_a_gradient_that_is_clipped_is_seen():
    right = REFERENCE.linear
    clipped = Op(right.forward, lambda dy, cache: right.backward(np.clip(dy, -0.5, 0.5), cache))
    with pytest.raises(AssertionError):
        check_linear(changed(linear=clipped), batch(count=3)[0], 1, 1)
    with pytest.raises(AssertionError):
        check_linear_operation("linear", with_op("linear", backward=clipped.backward))


def test_a_cache_in_memory_that_is_used_again_is_seen():
    rooms: dict[Any, np.ndarray] = {}

    def forward(x):
        y, cache = REFERENCE.gelu.forward(x)
        room = rooms.setdefault(x.shape, np.empty_like(x))
        room[...] = cache.slope
        return y, cache._replace(slope=room)

    check_pure(build("focal"), batch(count=2)[0])
    with pytest.raises(AssertionError, match="cache changed"):
        check_pure(changed(gelu=Op(forward, REFERENCE.gelu.backward)), batch(count=2)[0])


def test_an_operation_that_writes_into_dy_is_seen():
    def backward(dy, cache):
        gradients = REFERENCE.linear.backward(dy, cache)
        dy *= 2.0
        return gradients

    with pytest.raises(AssertionError, match="wrote into dy"):
        check_pure(changed(linear=Op(REFERENCE.linear.forward, backward)), batch(count=2)[0])


def test_an_operation_that_writes_into_its_input_is_seen():
    def forward(x, *others):
        y, cache = REFERENCE.layer_norm.forward(x, *others)
        x -= x.mean(axis=-1, keepdims=True)
        return y, cache

    with pytest.raises(AssertionError, match="input, output or cache changed"):
        check_pure(changed(layer_norm=Op(forward, REFERENCE.layer_norm.backward)), batch(count=2)[0])


def test_a_cache_that_is_used_up_is_seen():
    def backward(dy, cache):
        dx = REFERENCE.gelu.backward(dy, cache)
        cache.slope[...] *= 0.5
        return dx

    with pytest.raises(AssertionError, match="cache changed"):
        check_pure(changed(gelu=Op(REFERENCE.gelu.forward, backward)), batch(count=2)[0])


def test_a_statistic_over_the_batch_is_seen():
    def forward(x):
        y, cache = REFERENCE.mean_pool.forward(x)
        return y - 1e-9 * y.mean(axis=0), cache

    images, labels = batch("float64", 5)
    model = build("focal", "float64")
    check_parts(model, images, labels, 2)
    model.use_ops(with_op("mean_pool", forward=forward))
    with pytest.raises(AssertionError):
        check_parts(model, images, labels, 2)


def test_an_image_that_is_treated_apart_is_seen():
    def forward(x):
        y, cache = REFERENCE.mean_pool.forward(x)
        return y * (1.0 + 1e-9 * (np.arange(len(y)) == 0))[:, None], cache

    images, labels = batch("float64", 5)
    model = build("focal", "float64")
    order = np.array([4, 2, 0, 1, 3])
    check_order(model, images, labels, order)
    model.use_ops(with_op("mean_pool", forward=forward))
    with pytest.raises(AssertionError):
        check_order(model, images, labels, order)


def test_products_of_fewer_bits_are_seen():
    wide, data = build("focal", "float64"), batch("float32", 3)
    check_rounded(build("focal"), wide, *data)
    with pytest.raises(AssertionError):
        check_rounded(build("focal", precision="tf32"), wide, *data)


@pytest.mark.parametrize("drop", [0, 1], ids=["corner", "edge"])
def test_a_convolution_that_knows_where_it_is_is_seen(drop):
    def forward(ctx, *others):
        y, aggregate, cache = REFERENCE.focal_level.forward(ctx, *others)
        place = (np.arange(H * W) + drop).reshape(1, H, W, 1).astype(y.dtype)
        return y, aggregate * (1 + 1e-6 * place), cache

    with pytest.raises(AssertionError):
        check_moved(with_op("focal_level", forward=forward), 1, 2, -1)

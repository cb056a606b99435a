"""The fast GELU and sigmoid beside exact values: everywhere, far out, and where there is no number."""

import numpy as np
import pytest
from twins import GELU_ERROR

from minifocal.ops import get_ops, list_ops

EPS = float(np.finfo("float32").eps)
every_table = pytest.mark.parametrize("table", list_ops()[1:])
every_activation = pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "sigmoid"])


def both(table, name, x):
    """y, and dy/dx as the way back gives it."""
    op = getattr(get_ops(table), name)
    y, cache = op.forward(x)
    return y, op.backward(np.ones_like(x), cache)


@every_table
def test_gelu_in_float32_is_as_near_as_it_says(table):
    x = np.linspace(-20, 20, 400_001).astype("float32")
    for got, exact in zip(both(table, "gelu", x), both("reference", "gelu", x.astype("float64")), strict=True):
        assert got.dtype == "float32"
        assert np.abs(got - exact).max() < GELU_ERROR


@every_table
def test_gelu_in_float32_is_a_little_off(table):
    """The bound is one: a tenth of it does not hold, so the test above measures the polynomial."""
    x = np.linspace(-4, 4, 10_001).astype("float32")
    for got, exact in zip(both(table, "gelu", x), both("reference", "gelu", x.astype("float64")), strict=True):
        assert np.abs(got - exact).max() > 0.1 * GELU_ERROR


@every_activation
@every_table
def test_activations_in_float32_are_those_of_float64(table, name):
    """Every step rounds, of which there are some ten, and a slope's steps are about as large as x and its square."""
    x = np.linspace(-9, 9, 10_001).astype("float32")
    for got, exact in zip(both(table, name, x), both("reference", name, x.astype("float64")), strict=True):
        np.testing.assert_allclose(got, exact, rtol=0, atol=10 * EPS * 9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_activation
@every_table
def test_activations_do_not_overflow(table, name, dtype):
    x = np.array([-1e4, -300.0, 300.0, 1e4], dtype=dtype)
    if name != "gelu_tanh":  # which cubes
        x = np.concatenate([x, [-1e18, 1e18]], dtype=dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y, slope = both(table, name, x)
    positive = (x > 0).astype(dtype)
    # A share of nothing may be the smallest normal number.
    tiny = float(np.finfo("float32").tiny) * 1e18
    np.testing.assert_allclose(y, positive if name == "sigmoid" else positive * x, rtol=0, atol=tiny)
    np.testing.assert_allclose(slope, 0.0 * x if name == "sigmoid" else positive, rtol=0, atol=tiny)


@every_table
def test_gelu_tanh_far_below_zero_is_flat(table):
    """Its slope has x³ in it: what is left of its share, however small, must go to nothing faster."""
    x = np.array([-1e4, -1e8, -1e12, -np.inf], dtype="float32")
    with np.errstate(invalid="ignore", over="ignore"):
        (y, slope), (want, _) = both(table, "gelu_tanh", x), both("reference", "gelu_tanh", x)
    np.testing.assert_allclose(slope[:3], 0.0, rtol=0, atol=GELU_ERROR)
    np.testing.assert_allclose(y, want, rtol=0, atol=GELU_ERROR)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_activation
@every_table
def test_nan_stays_nan_and_alone(table, name, dtype):
    """At any place in a vector; and infinity gives what it gives in the reference."""
    x = np.random.default_rng(1).standard_normal(83).astype(dtype)
    x[[0, 17, 40]], x[[3, 82]] = np.nan, np.inf
    if name == "gelu":
        x[[8, 71]] = -np.inf
    with np.errstate(invalid="ignore", over="ignore"):
        (y, slope), (want, _) = both(table, name, x), both("reference", name, x)
    assert np.isnan(want).sum() >= 3
    np.testing.assert_allclose(y, want, rtol=0, atol=10 * EPS * 9)
    assert np.isnan(slope[np.isnan(x)]).all()

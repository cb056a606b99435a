"""Every operation of every table keeps, on extreme numbers, the bound that its arithmetic gives."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from extreme_bounds import LN_EPS
from extreme_table import ROWS
from extremes import DTYPES, PROFILES, RECORD, SHAPES, exact, make_inputs, share_of_bound, worst_share
from homes import Gpu

from minifocal.functional.activations import GeluCache, SigmoidCache
from minifocal.functional.cross_entropy import CrossEntropyCache
from minifocal.functional.layer_norm import LayerNormCache
from minifocal.ops import GPU_TABLE, REFERENCE, TABLES, Op, get_ops, list_ops

every_op = pytest.mark.parametrize("op", ROWS)
every_table = pytest.mark.parametrize("table", list_ops())
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def test_every_operation_of_the_table_has_a_row():
    operations = {field.name for field in fields(REFERENCE)} - {"name", "threaded", "precision"}
    assert ROWS.keys() == operations


@every_dtype
@every_op
def test_extreme_numbers_stay_within_the_bound(op, dtype):
    shares = {table: worst_share(op, get_ops(table), dtype) for table in list_ops()}
    assert {table: found for table, found in shares.items() if not found[0] <= 1.0} == {}


@every_dtype
def test_extreme_numbers_on_a_device_stay_within_the_bound(home, dtype):
    """On a GPU all of them, on the host, where kernels are slow, the hardest."""
    some = (PROFILES, SHAPES) if isinstance(home, Gpu) else (("denormal", "one outlier", "largest"), SHAPES[:1])
    ops = ROWS.keys() if dtype == "float32" else ROWS.keys() - {"unscale"}  # loss scaling is for float32
    shares = {op: worst_share(op, get_ops(GPU_TABLE, "cuda"), dtype, home, *some) for op in ops}
    assert {op: found for op, found in shares.items() if not found[0] <= 1.0} == {}


def test_the_record_is_of_all_operations_and_keeps_the_bounds():
    """`python tests/trust/extremes.py --write` makes it."""
    record = json.loads(RECORD.read_text())
    assert record.keys() == ROWS.keys()
    columns = {f"{table} {dtype}" for table in TABLES if table != GPU_TABLE for dtype in ("float32", "float64")}
    for op, shares in record.items():
        assert shares.keys() == columns, op
        assert all(0.0 < share <= 1.0 for share in shares.values()), op


def test_what_is_drawn_is_extreme_and_of_the_dtype():
    for op, row in ROWS.items():
        first = {
            profile: next(iter(make_inputs(op, row, profile, SHAPES[0], "float32").values())) for profile in PROFILES
        }
        assert {array.dtype for array in first.values()} == {np.dtype("float32")}
        assert 0.0 < abs(first["denormal"]).max() < np.finfo("float32").smallest_normal
        assert abs(first["largest"]).max() > 1e12
        assert not first["all zero"].any()
        assert np.unique(first["constant"]).size == 1


# What is exact


@every_table
@every_dtype
def test_the_loss_of_enormous_logits_is_finite_and_exact(table, dtype):
    """±1e4, where exp would be infinite or zero: certain and right costs 0, certain and wrong the difference."""
    op = get_ops(table).cross_entropy
    logits = np.array([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [0.0, 1e4, 1e4]], dtype)
    for label, row, want in ((0, 0, 0.0), (1, 1, 2e4), (2, 2, np.log(3.0)), (2, 3, np.log(2.0))):
        loss, cache = op.forward(logits[row : row + 1], np.array([label]))
        assert loss.dtype == dtype
        np.testing.assert_allclose(loss, want, rtol=2 * np.finfo(dtype).eps)
        gradient = op.backward(cache)
        assert np.isfinite(gradient).all()
        assert abs(gradient.sum()) <= 4 * np.finfo(dtype).eps
    _, cache = op.forward(logits[:2], np.array([0, 1]))
    np.testing.assert_array_equal(op.backward(cache), np.array([[0.0, 0.0, 0.0], [0.5, -0.5, 0.0]]))


@every_table
@every_dtype
def test_a_norm_of_equal_numbers_is_its_bias(table, dtype):
    """Nothing is divided by zero: eps is added to a variance of 0. Sums of equal powers of two are exact."""
    op, bias = get_ops(table).layer_norm, np.array([0.5, -1.5, 2.0, 0.25], dtype)
    x = np.full((2, 3, 5, 4), 4096.0, dtype)
    y, cache = op.forward(x, np.full(4, 3.0, dtype), bias, LN_EPS)
    np.testing.assert_array_equal(y, np.broadcast_to(bias, x.shape))
    dx, dweight, _ = op.backward(np.random.default_rng(1).standard_normal(x.shape).astype(dtype), cache)
    assert np.isfinite(dx).all()
    np.testing.assert_array_equal(dweight, 0.0)


@every_table
@every_dtype
def test_the_tails_of_activations(table, dtype):
    ops = get_ops(table)
    x = np.array([1e4, 50.0, -50.0, -1e4], dtype)
    for name in ("gelu", "gelu_tanh"):
        y, cache = getattr(ops, name).forward(x)
        np.testing.assert_array_equal(y, np.maximum(x, 0.0))
        np.testing.assert_array_equal(cache.slope, [1.0, 1.0, 0.0, 0.0])
    y, _ = ops.sigmoid.forward(x)
    np.testing.assert_array_equal(y[:2], 1.0)
    assert ((y[2:] >= 0.0) & (y[2:] < np.finfo(dtype).eps)).all()


# Where a range ends


@every_table
def test_beyond_its_range_a_norm_is_its_bias(table):
    """The squares of centred numbers overflow: the spread is infinite, all becomes 0 of it. Nothing says so."""
    x = np.array([[3e19, -3e19, 1e19, 0.0]], "float32")
    bias = np.array([1.0, 2.0, 3.0, 4.0], "float32")
    with np.errstate(over="ignore"):
        y, _ = get_ops(table).layer_norm.forward(x, np.ones(4, "float32"), bias, LN_EPS)
    np.testing.assert_array_equal(y[0], bias)


@every_table
def test_beyond_its_range_gelu_by_tanh_is_right_and_its_slope_is_nan(table):
    """x² overflows, and is multiplied by 0: check_finite tells it."""
    x = np.array([1e20, -1e20], "float32")
    with np.errstate(all="ignore"):
        y, cache = get_ops(table).gelu_tanh.forward(x)
    np.testing.assert_array_equal(y, np.maximum(x, 0.0))
    assert np.isnan(cache.slope).all()


# Wrong ones are seen


def one_pass_layer_norm(x, weight, bias, eps):
    """The variance as a difference of means."""
    mean = x.mean(axis=-1, keepdims=True)
    rstd = 1.0 / np.sqrt((x * x).mean(axis=-1, keepdims=True) - mean * mean + eps)
    x_hat = (x - mean) * rstd
    return x_hat * weight + bias, LayerNormCache(x_hat, rstd.astype(x.dtype), weight)


def unshifted_cross_entropy(logits, labels, smoothing):
    exp = np.exp(logits)
    p = exp / exp.sum(axis=1, keepdims=True)
    N = logits.shape[1]
    targets = ((1 - smoothing) * (labels[:, None] == np.arange(N)) + smoothing / N).astype(logits.dtype)
    return -(targets * np.log(p)).sum(axis=1).mean(), CrossEntropyCache(p, targets)


def rough_gelu(x):
    """The tanh's, for the exact one: 5e-4 off."""
    y, cache = REFERENCE.gelu_tanh.forward(x)
    return y, GeluCache(cache.slope)


def sigmoid_of_few_bits(x):
    y, _ = REFERENCE.sigmoid.forward(x.astype("float16").astype(x.dtype))
    return y, SigmoidCache(y)


def in_float16(op):
    """A sum in half precision, as of a careless accumulator."""
    return op._replace(forward=lambda x: (x.astype("float16").mean(axis=(1, 2)).astype(x.dtype), op.forward(x)[1]))


def flushed(op):
    """What is denormal taken for zero."""

    def forward(x, *others):
        return op.forward(np.where(abs(x) < np.finfo(x.dtype).smallest_normal, 0, x).astype(x.dtype), *others)

    return op._replace(forward=forward)


PLANTS = {
    "variance in one pass": ("layer_norm", Op(one_pass_layer_norm, REFERENCE.layer_norm.backward)),
    "softmax without a shift": ("cross_entropy", Op(unshifted_cross_entropy, REFERENCE.cross_entropy.backward)),
    "another GELU": ("gelu", Op(rough_gelu, REFERENCE.gelu.backward)),
    "a sigmoid of few bits": ("sigmoid", Op(sigmoid_of_few_bits, REFERENCE.sigmoid.backward)),
    "a mean in half precision": ("mean_pool", in_float16(REFERENCE.mean_pool)),
    "denormals flushed": ("modulate", flushed(REFERENCE.modulate)),
    "a gradient of 32 bits": (
        "linear",
        REFERENCE.linear._replace(
            backward=lambda dy, cache: REFERENCE.linear.backward(dy * (1 + 30 * np.finfo(dy.dtype).eps), cache)
        ),
    ),
}


@every_dtype
@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_mistake_is_seen(plant, dtype):
    op, wrong = PLANTS[plant]
    assert worst_share(op, replace(REFERENCE, **{op: wrong}), dtype)[0] > 1.0


def test_the_wide_error_function_is_that_of_the_library():
    """What float64 is held against: to float64's rounding the same as SciPy's, and finer."""
    wide, want = exact(ROWS["gelu"], make_inputs("gelu", ROWS["gelu"], "normal", SHAPES[0], "float64"), "float64")
    narrow, _ = REFERENCE.gelu.forward(wide["x"].astype("float64"))
    error = abs(narrow - want["y"]).max()
    assert 0.0 < error < 4 * np.finfo("float64").eps


def test_a_result_that_is_not_finite_is_beyond_any_bound():
    nan = Op(REFERENCE.gelu.forward, lambda dy, cache: np.nan * dy)
    assert share_of_bound("gelu", replace(REFERENCE, gelu=nan), "normal", SHAPES[0], "float32") == (np.inf, "dx")

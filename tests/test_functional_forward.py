"""Every operation gives what plain loops over its formula give, refuses what does not fit, and does not overflow.

The inputs are read-only wherever the library knows that, so an operation that writes into them raises.
"""

import math

import numpy as np
import oracles
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minifocal.arrays import as_numpy
from minifocal.errors import InputError
from minifocal.functional.activations import (
    gelu_backward,
    gelu_forward,
    gelu_tanh_backward,
    gelu_tanh_forward,
    sigmoid_backward,
    sigmoid_forward,
)
from minifocal.functional.box_mean import box_mean_forward
from minifocal.functional.context import focal_level_forward, global_level_forward
from minifocal.functional.cross_entropy import cross_entropy_backward, cross_entropy_forward, log_softmax
from minifocal.functional.depthwise_conv import depthwise_conv_forward
from minifocal.functional.drop_path import drop_path_forward, dropout_forward
from minifocal.functional.layer_norm import layer_norm_forward
from minifocal.functional.layer_scale import layer_scale_forward
from minifocal.functional.linear import linear_forward
from minifocal.functional.mean_pool import mean_pool_forward
from minifocal.functional.patches import patches_forward

EPS = float(np.finfo(np.float64).eps)
SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 5)
BATCHES = st.integers(1, 3)
MAPS = st.tuples(BATCHES, SIZES, SIZES, SIZES)
KERNELS = st.sampled_from([1, 3, 5, 7])
B, H, W, C = 2, 5, 4, 3


def normal(xp, seed, *shapes):
    """Arrays of normal numbers, read-only where the library has that."""
    rng = np.random.default_rng(seed)
    arrays = [xp.asarray(rng.standard_normal(shape)) for shape in shapes]
    for array in arrays:
        if xp is np:
            array.flags.writeable = False
    return arrays


def assert_equal(got, want, terms, scale=1.0):
    """Equal to the rounding of a sum of `terms` numbers about as large as `scale`, in any order."""
    np.testing.assert_allclose(as_numpy(got), want, rtol=0, atol=16 * EPS * terms * max(scale, np.abs(want).max()))


@given(leading=st.lists(SIZES, max_size=3), inputs=SIZES, outputs=SIZES, seed=SEEDS)
@example(leading=[B, H, W], inputs=C, outputs=7, seed=0)
def test_linear_equals_its_loops(xp, leading, inputs, outputs, seed):
    x, weight, bias = normal(xp, seed, (*leading, inputs), (inputs, outputs), (outputs,))
    y, _ = linear_forward(x, weight, bias)
    assert_equal(y, oracles.linear(*map(as_numpy, (x, weight, bias))), terms=inputs + 1, scale=10)


@pytest.mark.parametrize(
    ("forward", "oracle"),
    [
        (gelu_forward, oracles.gelu),
        (gelu_tanh_forward, oracles.gelu_tanh),
        (sigmoid_forward, oracles.sigmoid),
    ],
    ids=["gelu", "gelu_tanh", "sigmoid"],
)
@given(shape=st.lists(SIZES, max_size=4).map(tuple), seed=SEEDS)
@example(shape=(B, H, W, C), seed=0)
def test_activation_equals_its_formula(xp, forward, oracle, shape, seed):
    (x,) = normal(xp, seed, shape)
    x = 3.0 * x  # into both tails
    y, _ = forward(x)
    assert_equal(y, oracle(as_numpy(x)), terms=1, scale=10)


@given(shape=st.lists(SIZES, min_size=1, max_size=4).map(tuple), eps=st.sampled_from([1e-5, 1e-6, 0.1]), seed=SEEDS)
@example(shape=(B, H, W, C), eps=0.1, seed=0)
def test_layer_norm_equals_its_loops(xp, shape, eps, seed):
    x, weight, bias = normal(xp, seed, shape, shape[-1:], shape[-1:])
    y, _ = layer_norm_forward(x, weight, bias, eps)
    want = oracles.layer_norm(*map(as_numpy, (x, weight, bias)), eps)
    assert_equal(y, want, terms=shape[-1], scale=10 / math.sqrt(eps))  # rounding of x, divided by the least deviation


def test_layer_norm_keeps_its_digits_where_the_mean_is_large(xp):
    x, weight, bias = normal(xp, 1, (B, H, W, C), (C,), (C,))
    x = xp.round(x * 2**10) / 2**10  # so that adding the offset loses nothing
    offset = 2.0**24
    near, _ = layer_norm_forward(x, weight, bias)
    far, _ = layer_norm_forward(x + offset, weight, bias)
    # The mean is rounded to EPS * offset; a difference of squares would lose EPS * offset² = 6 % of everything.
    assert_equal(far, as_numpy(near), terms=C, scale=offset / math.sqrt(1e-5))


@given(shape=st.lists(SIZES, min_size=1, max_size=4).map(tuple), seed=SEEDS)
@example(shape=(B, H, W, C), seed=0)
def test_layer_scale_equals_its_loops(xp, shape, seed):
    x, gamma = normal(xp, seed, shape, shape[-1:])
    y, _ = layer_scale_forward(x, gamma)
    assert_equal(y, oracles.layer_scale(as_numpy(x), as_numpy(gamma)), terms=1)


@given(shape=MAPS, k=KERNELS, seed=SEEDS)
@example(shape=(B, H, W, C), k=3, seed=0)
@example(shape=(B, H, W, C), k=7, seed=0)
def test_depthwise_conv_equals_its_loops(xp, shape, k, seed):
    x, weight = normal(xp, seed, shape, (k, k, shape[3]))
    z, _ = depthwise_conv_forward(x, weight)
    assert_equal(z, oracles.depthwise_conv(as_numpy(x), as_numpy(weight)), terms=k * k, scale=10)


@given(shape=MAPS, size=SIZES, stride=st.integers(1, 6), seed=SEEDS, padding=st.tuples(*[st.integers(0, 3)] * 4))
@example(shape=(B, H, W, C), size=3, stride=2, seed=0, padding=(0, 2, 1, 3))
@example(shape=(B, H, W, C), size=2, stride=2, seed=0, padding=(0, 0, 0, 0))
def test_patches_are_the_values_of_the_map(xp, shape, size, stride, seed, padding):
    above, below, left, right = padding
    padding = ((above, below), (left, right))
    (x,) = normal(xp, seed, shape)
    if size > min(above + shape[1] + below, left + shape[2] + right):
        with pytest.raises(InputError, match=r"smaller than one \d x \d patch"):
            patches_forward(x, size, stride, padding)
    else:
        cut, _ = patches_forward(x, size, stride, padding)
        np.testing.assert_array_equal(as_numpy(cut), oracles.patches(as_numpy(x), size, stride, padding))


def test_patches_times_a_convolution_weight_is_that_convolution(xp):
    """The channel runs slowest in a patch, as in a published weight (O, C, P, P)."""
    x, weight = normal(xp, 2, (B, H, W, C), (6, C, 2, 2))
    cut, _ = patches_forward(x, 2, 2)
    got = as_numpy(cut @ weight.reshape(6, -1).T)
    want = np.zeros((B, 2, 2, 6))
    for b, h, w, o, c, i, j in np.ndindex(B, 2, 2, 6, C, 2, 2):
        want[b, h, w, o] += float(weight[o, c, i, j]) * float(x[b, 2 * h + i, 2 * w + j, c])
    assert_equal(got, want, terms=C * 4, scale=10)


@given(shape=MAPS, width=st.integers(1, 9), seed=SEEDS)
@example(shape=(B, H, W, C), width=4, seed=0)
def test_box_mean_equals_its_loops(xp, shape, width, seed):
    (x,) = normal(xp, seed, shape)
    y, _ = box_mean_forward(x, width)
    assert_equal(y, oracles.box_mean(as_numpy(x), width), terms=width)


@given(shape=MAPS, k=KERNELS, gated=st.booleans(), first=st.booleans(), seed=SEEDS)
@example(shape=(B, H, W, C), k=3, gated=True, first=False, seed=0)
def test_focal_level_equals_its_loops(xp, shape, k, gated, first, seed):
    ctx, weight, gate, aggregate = normal(xp, seed, shape, (k, k, shape[3]), (*shape[:3], 1), shape)
    gate, aggregate = gate if gated else None, 0.0 if first else aggregate
    got = focal_level_forward(ctx, weight, gate, aggregate)[:2]
    want = oracles.focal_level(
        as_numpy(ctx), as_numpy(weight), as_numpy(gate) if gated else None, 0.0 if first else as_numpy(aggregate)
    )
    for one, other in zip(got, want, strict=True):
        assert_equal(one, other, terms=k * k + 1, scale=10)


@given(shape=MAPS, first=st.booleans(), seed=SEEDS)
@example(shape=(B, H, W, C), first=False, seed=0)
def test_global_level_equals_its_loops(xp, shape, first, seed):
    ctx, gate, aggregate = normal(xp, seed, shape, (*shape[:3], 1), shape)
    got, _ = global_level_forward(ctx, gate, 0.0 if first else aggregate)
    want = oracles.global_level(as_numpy(ctx), as_numpy(gate), 0.0 if first else as_numpy(aggregate))
    assert_equal(got, want, terms=shape[1] * shape[2] + 1, scale=10)


@given(shape=MAPS, seed=SEEDS)
@example(shape=(B, H, W, C), seed=0)
def test_mean_pool_equals_its_loops(xp, shape, seed):
    (x,) = normal(xp, seed, shape)
    y, _ = mean_pool_forward(x)
    assert_equal(y, oracles.mean_pool(as_numpy(x)), terms=shape[1] * shape[2])


@given(batch=SIZES, classes=st.integers(1, 7), smoothing=st.sampled_from([0.0, 0.1, 0.9]), seed=SEEDS)
@example(batch=3, classes=5, smoothing=0.1, seed=0)
def test_cross_entropy_equals_its_loops(xp, batch, classes, smoothing, seed):
    (logits,) = normal(xp, seed, (batch, classes))
    labels = xp.asarray(np.random.default_rng(seed).integers(0, classes, batch))
    loss, _ = cross_entropy_forward(logits, labels, smoothing)
    assert loss.shape == ()
    assert_equal(loss, oracles.cross_entropy(as_numpy(logits), as_numpy(labels), smoothing), terms=classes, scale=10)


class FixedDraws:
    """A generator that gives the draws it was made with, and remembers for which shape it was asked."""

    def __init__(self, draws):
        self.draws = np.asarray(draws)
        self.asked = []

    def random(self, size):
        self.asked.append(size)
        return self.draws


def test_drop_path_keeps_a_sample_where_its_draw_is_below_the_keep_probability(xp):
    (x,) = normal(xp, 3, (4, H, W, C))
    rng = FixedDraws([np.nextafter(0.75, 0), 0.75, 0.0, 0.9])
    y, _ = drop_path_forward(x, 0.25, rng)
    assert rng.asked == [(4,)]
    want = np.stack([as_numpy(x)[b] * scale for b, scale in enumerate([1 / 0.75, 0.0, 1 / 0.75, 0.0])])
    np.testing.assert_array_equal(as_numpy(y), want)


def test_dropout_draws_once_for_every_value(xp):
    (x,) = normal(xp, 4, (B, H, C))
    draws = np.random.default_rng(5).random((B, H, C))
    rng = FixedDraws(draws)
    y, _ = dropout_forward(x, 0.4, rng)
    assert rng.asked == [(B, H, C)]
    assert 0 < (draws < 0.6).sum() < draws.size
    np.testing.assert_array_equal(as_numpy(y), np.where(draws < 0.6, as_numpy(x) * (1 / 0.6), 0.0))


@pytest.mark.parametrize("forward", [drop_path_forward, dropout_forward])
def test_nothing_is_drawn_or_dropped_without_an_rng_or_a_rate(xp, forward):
    (x,) = normal(xp, 6, (B, H, W, C))
    rng = FixedDraws([])
    for rate, source in ((0.0, rng), (0.9, None)):
        y, _ = forward(x, rate, source)
        np.testing.assert_array_equal(as_numpy(y), as_numpy(x))
    assert rng.asked == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("forward", "backward", "y", "slope"),
    [
        (sigmoid_forward, sigmoid_backward, (0.0, 1.0), (0.0, 0.0)),
        (gelu_forward, gelu_backward, (0.0, 1e4), (0.0, 1.0)),
        (gelu_tanh_forward, gelu_tanh_backward, (0.0, 1e4), (0.0, 1.0)),
    ],
    ids=["sigmoid", "gelu", "gelu_tanh"],
)
def test_activation_does_not_overflow(xp, dtype, forward, backward, y, slope):
    x = xp.asarray(np.array([-1e4, 1e4], dtype=dtype))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        got, cache = forward(x)
        dx = backward(xp.ones_like(x), cache)
    np.testing.assert_array_equal(as_numpy(got), np.array(y, dtype=dtype))
    np.testing.assert_array_equal(as_numpy(dx), np.array(slope, dtype=dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_does_not_overflow(xp, dtype):
    logits = xp.asarray(np.array([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]], dtype=dtype))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        loss, cache = cross_entropy_forward(logits, xp.asarray(np.array([0, 1])))
        dlogits = cross_entropy_backward(cache)
    assert float(loss) == 1e4  # 0 for the first sample, 2e4 for the second
    np.testing.assert_array_equal(as_numpy(dlogits), np.array([[0, 0, 0], [0.5, -0.5, 0]], dtype=dtype))


def test_log_softmax_is_the_logarithm_of_probabilities(xp):
    (logits,) = normal(xp, 7, (B, H, C))
    want = [
        [[math.log(math.exp(v) / sum(map(math.exp, row))) for v in row] for row in rows] for rows in logits.tolist()
    ]
    assert_equal(log_softmax(logits), np.array(want), terms=C)


def test_cross_entropy_of_equal_logits_is_log_of_the_classes(xp):
    loss, _ = cross_entropy_forward(xp.zeros((2, 7)), xp.asarray(np.array([0, 6])), 0.3)
    assert float(loss) == pytest.approx(math.log(7), rel=4 * EPS)


def zeros(*shape):
    return np.zeros(shape)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (
            r"linear: expected x with 3 channels and a bias of 5, got shapes \(2, 4\)",
            lambda: linear_forward(zeros(2, 4), zeros(3, 5), zeros(5)),
        ),
        (
            r"layer_norm: expected x \(..., C\), weight \(C,\) and bias \(C,\), got shapes \(2, 4\), \(3,\)",
            lambda: layer_norm_forward(zeros(2, 4), zeros(3), zeros(3)),
        ),
        (
            r"depthwise_conv: expected x of shape \(B, H, W, 3\), got \(2, 5, 4, 6\)",
            lambda: depthwise_conv_forward(zeros(2, 5, 4, 6), zeros(3, 3, 3)),
        ),
        (
            r"depthwise_conv: expected x of shape \(B, H, W, 3\), got \(5, 4, 3\)",
            lambda: depthwise_conv_forward(zeros(5, 4, 3), zeros(3, 3, 3)),
        ),
        (
            r"square kernel of odd size, got 4 x 4",
            lambda: depthwise_conv_forward(zeros(2, 5, 4, 3), zeros(4, 4, 3)),
        ),
        (
            r"square kernel of odd size, got 3 x 5",
            lambda: depthwise_conv_forward(zeros(2, 5, 4, 3), zeros(3, 5, 3)),
        ),
        (
            r"square kernel of odd size, got 2 x 2",
            lambda: focal_level_forward(zeros(2, 5, 4, 3), zeros(2, 2, 3), zeros(2, 5, 4, 1), 0.0),
        ),
        (
            r"expected x of shape \(B, H, W, 7\), got \(2, 5, 4, 3\)",
            lambda: focal_level_forward(zeros(2, 5, 4, 3), zeros(3, 3, 7), None, 0.0),
        ),
        (
            r"a map of 5 x 4 .* is smaller than one 6 x 6 patch; give larger images",
            lambda: patches_forward(zeros(2, 5, 4, 3), 6, 1),
        ),
        (
            r"a map of 5 x 4 .* is smaller than one 5 x 5 patch",  # one side only
            lambda: patches_forward(zeros(2, 5, 4, 3), 5, 5),
        ),
        (
            r"expected logits \(B, N\) and labels \(B,\), got \(2, 5\) and \(3,\)",
            lambda: cross_entropy_forward(zeros(2, 5), np.array([0, 1, 2])),
        ),
        (
            r"expected logits \(B, N\) and labels \(B,\), got \(2, 5\) and \(2, 5\)",
            lambda: cross_entropy_forward(zeros(2, 5), np.zeros((2, 5), dtype=int)),
        ),
        (
            r"expected logits \(B, N\) and labels \(B,\), got \(2,\) and \(2,\)",
            lambda: cross_entropy_forward(zeros(2), np.array([0, 1])),
        ),
        (
            r"labels must be integers, got float64",
            lambda: cross_entropy_forward(zeros(2, 5), np.array([0.0, 1.0])),
        ),
        (
            r"labels must be integers, got bool",
            lambda: cross_entropy_forward(zeros(2, 5), np.array([True, False])),
        ),
        (
            r"labels must lie in 0\.\.4, one for each of 5 logits, got 1\.\.5",
            lambda: cross_entropy_forward(zeros(2, 5), np.array([1, 5])),
        ),
        (
            r"labels must lie in 0\.\.4, one for each of 5 logits, got -1\.\.4",
            lambda: cross_entropy_forward(zeros(2, 5), np.array([4, -1])),
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(message, call):
    with pytest.raises(InputError, match=message):
        call()

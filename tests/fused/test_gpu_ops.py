"""The table "cuda": its kernels, compiled for the host and on a GPU where there is one, beside the reference on NumPy.

On the host every launch is watched (see cuda_host): nothing is read or written beside an array, everything is written
that is said to be, and the order of threads makes no difference.
"""

import numpy as np
import pytest
from cases import CASES, ON_MAPS, B, C, H, W, levels
from homes import arrays
from twins import LAYOUTS, Case, Normal, SameForAllTokens, check_twins, go, make, op_of

from minifocal.errors import InputError
from minifocal.fused import gpu_calls
from minifocal.fused.gpu_ops import OVERRIDES
from minifocal.ops import GPU_TABLE, REFERENCE, get_ops

N = 40  # classes, more than a warp has lanes
LOSSES = [
    Case("cross_entropy", f"of {n}", (Normal((batch, n)), np.arange(batch) * 7 % n, smoothing))
    for batch, n, smoothing in ((5, 3, 0.0), (9, N, 0.1), (1, 33, 0.3), (2, 1, 0.1))
]
OVERLAPPING = [
    Case(
        "patches",
        f"{size} by {size}, {stride} apart, with {padding} around",
        (Normal((B, 7, 6, C)), size, stride, padding),
    )
    for size, stride, padding in ((3, 2, ((1, 2), (0, 1))), (2, 3, ((0, 0), (1, 0))), (7, 4, ((2, 2), (2, 2))))
]
ONE_ROW = [  # a map of which one row for each image exists
    Case("depthwise_conv", "of one row", (SameForAllTokens((B, H, W, C)), Normal((3, 3, C)))),
    Case("depthwise_conv", "of one row and one image", (SameForAllTokens((1, H, W, C)), Normal((3, 3, C)))),
    Case("modulate", "of one row", (SameForAllTokens((B, H, W, C)), Normal((B, H, W, C)))),
    Case("global_level", "with one gate", (Normal((B, H, W, C)), SameForAllTokens((B, H, W, 1)), 0.0)),
]
LARGE = [  # more rows than one block sums, more channels than one block has
    Case("linear", "of many rows", (Normal((3, 11, 9, 5)), Normal((5, 37)), Normal((37,)))),
    Case("layer_norm", "of many rows", (Normal((3, 11, 9, 5)), Normal((5,)), Normal((5,)))),
    Case("layer_norm", "of many channels", (Normal((2, 3, 1, 260)), Normal((260,)), Normal((260,)))),
    Case("depthwise_conv", "of many channels and wide rows", (Normal((1, 3, 71, 68)), Normal((3, 3, 68)))),
    Case("focal_level", "of tall maps", (Normal((1, 41, 9, 36)), Normal((5, 5, 36)), Normal((1, 41, 9, 1)), 0.5)),
    Case("global_level", "of many tokens", (Normal((2, 19, 17, 36)), Normal((2, 19, 17, 1)), 0.5)),
]
ALL = [case for case in [*CASES, *LOSSES, *OVERLAPPING, *ONE_ROW, *LARGE] if case.op in OVERRIDES]
MAPS = [case for case in ON_MAPS if case.op in OVERRIDES]
FUSED = get_ops(GPU_TABLE, "cuda")


def check(case, dtype, home, layout="in order"):
    fast, reference = op_of(FUSED, case.op), op_of(REFERENCE, case.op)
    check_twins(fast, reference, case, dtype, layout, home=home, gelu_error=0.0)


def test_every_operation_that_is_replaced_has_its_case():
    assert OVERRIDES.keys() - {"sgd_update", "adamw_update", "clip", "unscale"} == {case.op for case in ALL}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", ALL, ids=str)
def test_every_pairing_equals_the_reference(case, dtype, home):
    check(case, dtype, home)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", MAPS, ids=str)
def test_maps_may_lie_in_memory_as_they_like(case, layout, home):
    check(case, "float32", home, layout)


@pytest.mark.parametrize("offset", range(4))
def test_a_part_of_wider_rows_may_begin_anywhere(offset, home):
    """Rows are multiples of a vector here, which may only be read at a multiple of 16 bytes."""
    rng = np.random.default_rng(6)
    wide, weight = (
        rng.standard_normal((B, H, W, 12)).astype("float32"),
        rng.standard_normal((3, 3, 8)).astype("float32"),
    )
    part = home.put(wide)[..., offset : offset + 8]
    z, _ = FUSED.depthwise_conv.forward(part, home.put(weight))
    want, _ = REFERENCE.depthwise_conv.forward(wide[..., offset : offset + 8], weight)
    np.testing.assert_allclose(home.get(z), want, rtol=0, atol=9 * 16 * np.finfo("float32").eps)


@pytest.mark.parametrize("case", MAPS, ids=str)
def test_the_same_call_gives_the_same_bits(case, home):
    op = op_of(FUSED, case.op)
    given = [home.put(part) for part in make(case, op_of(REFERENCE, case.op), "float32")]
    first, second = (arrays(home.get(go(*op, *given))) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("case", levels(1, 3, 2, 4, 33), ids=str)
def test_kernels_beyond_a_block_are_left_to_the_reference(case, home):
    check(case, "float64", home)


def test_layer_norm_keeps_its_digits_where_the_mean_is_large(home):
    offset = 2.0**20
    rng = np.random.default_rng(1)
    x = np.round(rng.standard_normal((B, H, W, C)) * 2**10) / 2**10  # so that adding the offset loses nothing
    weight, bias = rng.standard_normal((2, C))
    near, far = (home.get(FUSED.layer_norm.forward(*home.put((x + o, weight, bias)), 0.1)[0]) for o in (0.0, offset))
    np.testing.assert_allclose(far, near, rtol=0, atol=16 * C * np.finfo("float64").eps * offset / 0.3)


def test_a_gradient_of_the_loss_may_be_scaled_by_an_array(home):
    """As a loss scaler does, whose scale lives on the device."""
    logits, labels = np.random.default_rng(2).standard_normal((5, 7)), np.arange(5)
    _, cache = REFERENCE.cross_entropy.forward(logits, labels, 0.1)
    scale = np.array(3.5)
    got = FUSED.cross_entropy.backward(home.put(cache), home.put(scale))
    want = REFERENCE.cross_entropy.backward(cache, 3.5)
    np.testing.assert_allclose(home.get(got), want, rtol=4 * np.finfo("float64").eps)


@pytest.mark.parametrize("kind", ["int8", "uint16", "int32", "int64"])
def test_labels_may_be_integers_of_any_type(kind, home):
    logits, labels = np.random.default_rng(2).standard_normal((5, 7)), np.arange(5)
    loss, _ = FUSED.cross_entropy.forward(*home.put((logits, labels.astype(kind))))
    np.testing.assert_allclose(home.get(loss), REFERENCE.cross_entropy.forward(logits, labels)[0], rtol=1e-14)


def test_extremes_do_not_overflow(home):
    x = np.array([-1e30, -300.0, 0.0, 300.0, 1e30, np.nan], dtype="float32")
    (y, cache), (s, _) = FUSED.gelu.forward(home.put(x)), FUSED.sigmoid.forward(home.put(x))
    positive = np.array([0, 0, 0, 1, 1, np.nan], dtype="float32")
    np.testing.assert_array_equal(home.get(y), np.where(x > 0, x, positive))
    np.testing.assert_array_equal(home.get(cache.slope), [0, 0, 0.5, 1, 1, np.nan])
    np.testing.assert_array_equal(home.get(s), [0, 0, 0.5, 1, 1, np.nan])
    logits = np.array([[1e30, -1e30, 0.0], [1e38, 1e38, -1e38]], dtype="float32")
    loss, _ = FUSED.cross_entropy.forward(*home.put((logits, np.array([0, 1]))))
    np.testing.assert_allclose(home.get(loss), np.log(2) / 2, rtol=1e-6)


# What does not fit together: a kernel would read beside its arrays, or one type as another


def zeros(home, *shapes, dtype="float64"):
    return home.put(tuple(np.zeros(shape, dtype) for shape in shapes))


def test_gradients_of_another_shape_are_refused(home):
    x, weight, bias, dy = zeros(home, (2, 3), (3, 5), (5,), (3, 5))
    _, cache = FUSED.linear.forward(x, weight, bias)
    with pytest.raises(InputError, match=r"expected an array of shape \(2, 5\), got \(3, 5\)"):
        FUSED.linear.backward(dy, cache)
    x, gate, dy = zeros(home, (B, H, W, C), (B, H, W, 1), (B, W, H, C))
    _, cache = FUSED.patches.forward(x, 2, 2)
    with pytest.raises(InputError, match=r"expected an array of shape \(2, 2, 2, 12\), got \(2, 4, 5, 3\)"):
        FUSED.patches.backward(dy, cache)
    _, cache = FUSED.global_level.forward(x, gate, 0.0)
    with pytest.raises(InputError, match=r"expected an array of shape \(2, 5, 4, 3\), got \(2, 4, 5, 3\)"):
        FUSED.global_level.backward(dy, cache)
    for name in ("gelu", "gelu_tanh", "sigmoid"):
        _, cache = getattr(FUSED, name).forward(x)
        with pytest.raises(InputError, match="two arrays of one shape"):
            getattr(FUSED, name).backward(dy, cache)


def test_arrays_of_two_dtypes_are_refused(home):
    x, weight = zeros(home, (B, H, W, C), (3, 3, C))
    (narrow,) = zeros(home, (3, 3, C), dtype="float32")
    with pytest.raises(InputError, match="depthwise_conv: expected arrays of one dtype, got float64 and float32"):
        FUSED.depthwise_conv.forward(x, narrow)
    (bias,), (matrix,) = zeros(home, (C,)), zeros(home, (C, C), dtype="float32")
    with pytest.raises(InputError, match="linear: expected arrays of one dtype"):
        FUSED.linear.forward(x, matrix, bias)
    assert FUSED.depthwise_conv.forward(x, weight)[0].dtype == "float64"


def test_sums_over_many_rows_keep_a_large_gpu_busy():
    """A few thousand blocks, each of which has some rows to sum."""
    for rows, groups in ((401_408, 3), (100_352, 6), (6_272, 24)):
        share = gpu_calls.share_of(rows, groups)
        assert 1000 < groups * -(-rows // share) <= 2048

"""Matrix products of a GPU in fewer bits are those of functional.precision."""

import numpy as np
import pytest

from minifocal.errors import InputError
from minifocal.functional.precision import MANTISSA_BITS, round_to
from minifocal.fused import gpu
from minifocal.fused.gpu_ops import to_bfloat16
from minifocal.ops import GPU_TABLE, get_ops

EPS = float(np.finfo("float32").eps)
INNER, COLUMNS = 37, 5
CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF = 0, 2, 14  # as in library_types.h of CUDA
CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32 = 68, 77  # as in cublas_api.h
# Ties of tf32 go away from zero on a GPU.
HALF = [name for name in MANTISSA_BITS if name not in ("float32", "tf32")]


def draw(seed=1):
    rng = np.random.default_rng(seed)
    shapes = (2, 3, INNER), (INNER, COLUMNS), (COLUMNS,), (2, 3, COLUMNS)
    return [rng.standard_normal(shape).astype("float32") for shape in shapes]


def both_ways(ops, home, x, weight, bias, dy):
    x, weight, bias, dy = home.put((x, weight, bias, dy)) if home else (x, weight, bias, dy)
    y, cache = ops.linear.forward(x, weight, bias)
    results = (y, *ops.linear.backward(dy, cache))
    return home.get(results) if home else results


@pytest.mark.parametrize("precision", HALF)
def test_products_of_half_precision_are_the_readable_ones(precision, home):
    """Sums of products of half precision, which are exact in float32, differ by their order alone."""
    got = both_ways(get_ops(GPU_TABLE, "cuda", precision), home, *draw())
    want = both_ways(get_ops("reference", "cpu", precision), None, *draw())
    exact = both_ways(get_ops("reference"), None, *draw())
    for one, other in zip(got, want, strict=True):
        assert one.dtype == "float32"
        np.testing.assert_allclose(one, other, rtol=0, atol=2 * INNER * EPS * np.abs(other).max())
    assert np.abs(want[0] - exact[0]).max() > 20 * INNER * EPS  # it would be seen if nothing were rounded


@pytest.mark.parametrize("precision", MANTISSA_BITS)
def test_cublas_may_round_where_tf32_is_asked_for_and_nowhere_else(precision, host_compiled, monkeypatch):
    host_compiled.take_the_place_of_cupy(monkeypatch)
    asked, multiply = [], gpu.gemm
    monkeypatch.setattr(gpu, "gemm", lambda *given: asked.append((given[7], given[-2])) or multiply(*given))
    both_ways(get_ops(GPU_TABLE, "cuda", precision), host_compiled, *draw())
    operands = {"bfloat16": CUDA_R_16BF, "float16": CUDA_R_16F}.get(precision, CUDA_R_32F)
    compute = CUBLAS_COMPUTE_32F_FAST_TF32 if precision == "tf32" else CUBLAS_COMPUTE_32F
    assert asked == [(operands, compute)] * 3


@pytest.mark.parametrize("precision", MANTISSA_BITS)
def test_products_are_as_near_to_float32s_as_their_operands(precision, home):
    x, weight, bias, dy = draw()
    y, *_ = both_ways(get_ops(GPU_TABLE, "cuda", precision), home, x, weight, bias, dy)
    exact = x.astype("float64") @ weight + bias
    u = 2.0 ** -(MANTISSA_BITS[precision] + 1)
    bound = (2 * u + u * u + 2 * INNER * EPS) * (np.abs(x).astype("float64") @ np.abs(weight) + np.abs(bias))
    assert (np.abs(y - exact) <= bound).all()


def test_bfloat16_is_rounded_as_it_is_read(home):
    """Upper halves of all kinds, NaN and infinity among them, with lower halves around a tie."""
    upper = np.arange(0, 2**16, 7, dtype=np.uint32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = (upper | np.uint32(lower)).view("float32")
        bits = home.get(to_bfloat16(home.put(x)))
        got = (bits.astype(np.uint32) << 16).view("float32")
        want = round_to(x, "bfloat16")
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        np.testing.assert_array_equal(got[~np.isnan(want)].view("uint32"), want[~np.isnan(want)].view("uint32"))


def test_float64_is_not_rounded(home):
    (x, weight, bias, _) = (array.astype("float64") for array in draw())
    with pytest.raises(InputError, match="bfloat16"):
        get_ops(GPU_TABLE, "cuda", "bfloat16").linear.forward(*home.put((x, weight, bias)))

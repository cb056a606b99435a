"""The tests of kernels on the host find what is wrong: mistakes that people make in kernels, planted in right ones."""

import re

import numpy as np
import pytest
from cuda_host import COMPILER, HostGpu, instantiations
from homes import HostCompiled
from twins import Case, Normal, check_twins, op_of

from minifocal.fused import gpu
from minifocal.ops import GPU_TABLE, REFERENCE, get_ops

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: CXX names one")
B, H, W, C = 2, 9, 11, 5
CASES = {
    "gelu": Case("gelu", "", (Normal((7,)),)),
    "norm": Case("layer_norm", "", (Normal((B, H, W, 41)), Normal((41,)), Normal((41,)))),
    "conv": Case("depthwise_conv", "", (Normal((B, H, W, C)), Normal((3, 3, C)))),
    "wide": Case("depthwise_conv", "wide", (Normal((B, H, W, 40)), Normal((3, 3, 40)))),
    "level": Case(
        "focal_level", "", (Normal((B, H, W, C)), Normal((3, 3, C)), Normal((B, H, W, 1)), Normal((B, H, W, C)))
    ),
    "patches": Case("patches", "", (Normal((B, H, W, C)), 3, 2, ((1, 1), (1, 1)))),
    "loss": Case("cross_entropy", "", (Normal((5, 40)), np.arange(5), 0.1)),
}
KERNELS = {
    "gelu": ("gelu",),
    "layer_norm": ("layer_norm", "layer_norm_backward", "column_sums"),
    "depthwise_conv": ("depthwise_conv", "depthwise_conv_weight", "column_sums"),
    "focal_level": ("focal_level", "depthwise_conv", "depthwise_conv_weight", "gated_gradient", "column_sums"),
    "patches": ("patches", "patches_backward"),
    "cross_entropy": ("cross_entropy", "cross_entropy_backward"),
}
WRONG, OUTSIDE, RACE = "Not equal to tolerance", "outside of its arrays", "another order of threads"
PLANTS = {  # the case, what stands in the source, what is put in its place, how it is found
    "no barrier before others' sums are read": ("norm", "    __syncthreads();\n", "", RACE),
    "no look at where the array ends": ("gelu", "if (at >= count) return;", "", OUTSIDE),
    "the last share of rows goes on": (
        *("conv", "first + share < rows ? first + share : rows", "first + share"),
        f"{WRONG}|{OUTSIDE}",
    ),
    "half of a warp is summed": (
        *("norm", "LANES / 2; distance > 0; distance /= 2) value", "LANES / 4; distance > 0; distance /= 2) value"),
        WRONG,
    ),
    "only the first channels": ("wide", "(blockIdx.y * blockDim.x + threadIdx.x) * V", "threadIdx.x * V", WRONG),
    "a kernel that is not turned": ("conv", "TURNED ? K - 1 - i : i", "i", WRONG),
    "taps by column": ("conv", "(TURNED ? K - 1 - j : j) * C", "(TURNED ? K - 1 - j : j) * K * C", WRONG),
    "the next row's tokens at the border": (
        *("conv", "w >= 0 && w < W ? load<T, V>(row + w * pitch)", "true ? load<T, V>(row + w * pitch)"),
        WRONG,
    ),
    "a window that slides by one too few": ("conv", "window[(u + j) % K]", "window[(u + j + 1) % K]", WRONG),
    "the end of a row is not looked at": ("conv", "if (place.w + s < W) store", "store", f"{WRONG}|{OUTSIDE}|{RACE}"),
    "no sum before": (
        *("level", "sum = before ? load<T, V>(before + at) : all<T, V>(start)", "sum = all<T, V>(start)"),
        WRONG,
    ),
    "one gate for all": ("level", "gate[token * gate_pitch]", "gate[0]", WRONG),
    "a slope of something else": ("level", "slope = cdf + x * density", "slope = cdf", WRONG),
    "a pixel of two patches counts once": ("patches", "j += stride", "j += size", WRONG),
    "padding forgotten on the way back": ("patches", "w = in_line.remainder + left", "w = in_line.remainder", WRONG),
    "no shift by the largest logit": ("loss", "sum += exp(row[n] - largest)", "sum += exp(row[n])", WRONG),
    "smoothing of the label alone": ("loss", " : T(0)) + smoothing / T(N)", " : T(0))", WRONG),
    "a constant in single precision": ("gelu", "0.39894228040143267794", "0.39894228f", WRONG),
}


def launched_by(operation):
    """The kernels of an operation, in float64 and of 3 x 3 taps."""
    names = [name for name in instantiations() if name.partition("<")[0] in KERNELS[operation] and "double" in name]
    return [name for name in names if not re.search(r", [14], [1579]", name)]


@pytest.fixture
def run(monkeypatch):
    """Compare with the reference, with something else in the source."""

    def compare(case, old, new):
        source = gpu.read_source()
        assert old in source
        home = HostCompiled(HostGpu(source.replace(old, new), launched_by(case.op)))
        home.take_the_place_of_cupy(monkeypatch)
        fast = op_of(get_ops(GPU_TABLE, "cuda"), case.op)
        check_twins(fast, op_of(REFERENCE, case.op), case, "float64", home=home)

    return compare


@pytest.mark.parametrize("case", CASES)
def test_the_right_source_passes(case, run):
    run(CASES[case], "", "")


@pytest.mark.parametrize("mistake", PLANTS)
def test_a_planted_mistake_is_caught(mistake, run):
    case, old, new, said = PLANTS[mistake]
    with pytest.raises(AssertionError, match=said):
        run(CASES[case], old, new)

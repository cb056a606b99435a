"""Runs every kernel once on odd shapes, and looks whether it is right: a small program for tools that watch a GPU.

    compute-sanitizer --tool memcheck python tests/gpu_kernels.py
    compute-sanitizer --tool racecheck python tests/gpu_kernels.py

With `--host` it runs the kernels that are compiled for the host.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "fused")]

from cases import elementwise, levels, maps  # noqa: E402
from cuda_host import COMPILER  # noqa: E402
from homes import Gpu, Home, HostCompiled, map_arrays  # noqa: E402
from twins import Case, Normal, check_twins, op_of  # noqa: E402

from minifocal.arrays import check_device  # noqa: E402
from minifocal.errors import InputError  # noqa: E402
from minifocal.functional.updates import UpdateRow  # noqa: E402
from minifocal.fused.gpu_ops import OVERRIDES  # noqa: E402
from minifocal.ops import GPU_TABLE, REFERENCE, get_ops  # noqa: E402

CASES = [
    *elementwise(2, 5, 4),
    *(case for C in (3, 36) for k in (3, 5, 7) for case in levels(2, 9, 11, C, k)),
    *(case for C in (5, 8) for case in maps(2, 5, 4, C)),
    Case("cross_entropy", "", (Normal((5, 40)), np.arange(5), 0.1)),
]


def run_updates(home: Home, dtype: str) -> None:
    """Make steps of both optimizers, clip and unscale."""
    fused = get_ops(GPU_TABLE, "cuda")
    rng = np.random.default_rng(1)
    for name, slots, options in (
        ("sgd_update", 1, {"momentum": 0.9, "nesterov": True}),
        ("adamw_update", 2, {"betas": (0.9, 0.99), "eps": 1e-3, "steps": 3}),
    ):
        arrays = [[rng.uniform(0.5, 2.0, shape).astype(dtype) for _ in range(4)] for shape in ((7,), (3, 5), (130, 97))]
        rows = [UpdateRow(a[0], a[1], tuple(a[2 : 2 + slots]), 0.1) for a in arrays]
        there = home.put(map_arrays(np.copy, rows))
        getattr(REFERENCE, name)(rows, lr=0.1, **options)
        getattr(fused, name)(there, lr=0.1, **options)
        for one, other in zip(there, rows, strict=True):
            np.testing.assert_allclose(home.get(one.data), other.data, rtol=100 * np.finfo(dtype).eps)
    gradients, wanted, scale = [row.grad for row in there], [row.grad for row in rows], np.array(8.0, "float32")
    fused.clip(gradients, 0.1)
    REFERENCE.clip(wanted, 0.1)
    assert not home.get(fused.unscale(gradients, home.put(scale)))
    REFERENCE.unscale(wanted, scale)
    for one, other in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(home.get(one), other, rtol=1e5 * np.finfo(dtype).eps)


def run_all(home: Home) -> int:
    """Compare every operation with the reference; give how many there were."""
    fused = get_ops(GPU_TABLE, "cuda")
    cases = [case for case in CASES if case.op in OVERRIDES]
    for dtype in ("float32", "float64"):
        for case in cases:
            check_twins(op_of(fused, case.op), op_of(REFERENCE, case.op), case, dtype, home=home)
        run_updates(home, dtype)
    x, weight, bias = home.put(tuple(np.ones(shape, "float32") for shape in ((3, 5), (5, 7), (7,))))
    for precision in ("tf32", "bfloat16", "float16"):
        y, _ = get_ops(GPU_TABLE, "cuda", precision).linear.forward(x, weight, bias)
        np.testing.assert_array_equal(home.get(y), 6.0)
    return 2 * len(cases)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", action="store_true", help="kernels compiled for the host, where there is no GPU")
    args = parser.parse_args()
    try:
        if args.host:
            if COMPILER is None:
                raise InputError("--host needs a C++ compiler on Linux: CXX names one")
            home: Home = HostCompiled()
            home.take_the_place_of_cupy(pytest.MonkeyPatch())  # type: ignore[attr-defined]
        else:
            check_device("cuda")
            home = Gpu()
    except InputError as error:
        print(f"gpu_kernels: {error}", file=sys.stderr)
        return 2
    print(f"{run_all(home)} comparisons, all as the reference")
    return 0


if __name__ == "__main__":
    sys.exit(main())

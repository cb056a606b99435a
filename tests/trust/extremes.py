"""Every operation on extreme numbers: how far it is from wide arithmetic, as a share of the error that it is allowed.

    python tests/trust/extremes.py            # measure, and print a table
    python tests/trust/extremes.py --write    # and keep it in extremes.json

float32 is held against float64 on the same numbers, float64 against the 80 bits of a PC's long double.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from extreme_bounds import SCALE, Arrays, Rounding
from extreme_table import ROWS, Row
from homes import HOST, Home

from minifocal.functional import activations
from minifocal.ops import REFERENCE, Ops, get_ops, list_ops

RECORD = Path(__file__).with_suffix(".json")
WIDE = {"float32": np.float64, "float64": np.longdouble}
DTYPES = [name for name, wide in WIDE.items() if np.finfo(wide).eps < np.finfo(name).eps]
SHAPES = ((2, 5, 4, 3), (3, 1, 1, 7))  # the second of one pixel
GELU_ERROR = 5e-7  # of GELU and its slope in float32, as the fast tables for CPUs promise
STEPS = (0.01, 0.1, 0.25, 0.5, 1.0)
"""What shares are rounded up to in the record: another machine sums in another order."""

PROFILES = (
    "normal", "ten thousand", "denormal", "all denormal", "all zero", "constant", "one outlier", "far from zero",
    "largest", "large from above", "denormal from above",
)  # fmt: skip


def make_inputs(op: str, row: Row, profile: str, shape: tuple[int, ...], dtype: str) -> Arrays:
    """Draw what an operation takes: the first array by the profile, the others normal."""
    rng = np.random.default_rng([sum(map(ord, op)), PROFILES.index(profile)])
    info = np.finfo(dtype)
    inputs: Arrays = {}
    for number, (name, size) in enumerate(row.shapes(*shape).items()):
        values, first = np.asarray(rng.standard_normal(size)), number == 0
        if name in ("labels", "scale"):
            inputs[name] = rng.integers(0, 3, size) if name == "labels" else np.array(SCALE, "float32")
            continue
        if profile == "all zero":
            values *= 0.0
        elif profile == "all denormal" or (profile == "denormal" and first):
            values *= float(info.smallest_normal) / 16
        elif profile == "ten thousand" and first:
            values = 1e4 * np.sign(values)
        elif profile == "constant" and first:
            values = np.full(size, 3.7)
        elif profile == "one outlier" and first:
            values.flat[values.size // 2] = row.largest(info) ** 0.5
        elif profile == "far from zero" and first:
            values = 1e4 + 0.01 * values
        elif profile == "largest" and first:
            values = row.largest(info) * np.sign(values) * rng.uniform(0.5, 1.0, size)
        elif profile == "large from above" and name.startswith("d") and not first:
            values *= 1e4
        elif profile == "denormal from above" and name.startswith("d") and not first:
            values *= float(info.smallest_normal) / 16
        inputs[name] = values.astype(dtype)
    return inputs


@contextmanager
def wide_erf() -> Iterator[None]:
    """Let the reference compute erf in long double, which SciPy has not."""
    right = activations.erf
    activations.erf = lambda x: _erf(x) if x.dtype == np.longdouble else right(x)
    try:
        yield
    finally:
        activations.erf = right


def _erf(x: np.ndarray) -> np.ndarray:
    """2/√π exp(-x²) sum_n 2^n x^(2n+1) / (1·3·5···(2n+1)): all terms have one sign, so that nothing cancels."""
    near = np.clip(x, -7.0, 7.0)  # beyond, erf is ±1 to the last bit
    total, n = near.copy(), 0
    term = near
    while (abs(term) > np.finfo(x.dtype).eps / 8 * abs(total)).any():
        n += 1
        term = term * (2 * near * near / (2 * n + 1))
        total = total + term
    return np.clip(2 / np.sqrt(np.longdouble(np.pi)) * np.exp(-near * near) * total, -1.0, 1.0)


def exact(row: Row, inputs: Arrays, dtype: str) -> tuple[Arrays, Arrays]:
    """Give the inputs and what comes of them in wide arithmetic."""
    wide = {name: a.astype(WIDE[dtype]) if a.dtype.kind == "f" else a for name, a in inputs.items()}
    with wide_erf(), np.errstate(all="ignore"):
        return wide, row.run(REFERENCE, wide)


@cache
def drawn(op: str, profile: str, shape: tuple[int, ...], dtype: str) -> tuple[Arrays, Arrays, Arrays]:
    """Give the inputs, the same in the wide dtype, and what comes of them."""
    inputs = make_inputs(op, ROWS[op], profile, shape, dtype)
    return inputs, *exact(ROWS[op], inputs, dtype)


def share_of_bound(
    op: str, ops: Ops, profile: str, shape: tuple[int, ...], dtype: str, home: Home = HOST
) -> tuple[float, str]:
    """Give the largest error as a share of what is allowed, and which result has it; of NaN it is infinite."""
    row = ROWS[op]
    inputs, wide, want = drawn(op, profile, shape, dtype)
    info = np.finfo(dtype)
    fast = dtype == "float32" and ops.name in ("numpy", "numba")
    rounding = Rounding(float(info.eps), float(info.smallest_subnormal), GELU_ERROR if fast else 0.0)
    put = {name: home.put((a,))[0] for name, a in inputs.items()}
    with np.errstate(all="ignore"):
        got = {name: home.get((a,))[0] for name, a in row.run(ops, put).items()}
        bounds = row.bound(wide, {name: np.asarray(a, WIDE[dtype]) for name, a in want.items()}, rounding)
    worst = (0.0, "")
    for name, array in got.items():
        error = abs(np.asarray(array).astype(WIDE[dtype]) - want[name])
        # Products of a sum may each fall below the smallest number.
        allowed = np.asarray(bounds[name]) + 64 * rounding.smallest * (np.asarray(bounds[name]) > 0)
        share = np.where(error > 0, error / np.maximum(allowed, np.finfo(WIDE[dtype]).tiny), 0.0)
        share = float("inf") if not np.isfinite(np.asarray(array).astype(float)).all() else float(share.max())
        if not share <= worst[0]:
            worst = (share, name)
    return worst


def worst_share(
    op: str,
    ops: Ops,
    dtype: str,
    home: Home = HOST,
    profiles: Sequence[str] = PROFILES,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
) -> tuple[float, str]:
    """Give the largest share of some profiles and shapes, and where it is."""
    shares = []
    for profile in profiles:
        for shape in shapes:
            share, result = share_of_bound(op, ops, profile, shape, dtype, home)
            shares.append((share, f"{result}, {profile}{', one pixel' if shape[1] == 1 else ''}"))
    return max(shares, key=lambda pair: pair[0])


def rounded_up(share: float) -> float:
    """Give the step that a share does not exceed, or infinity."""
    return next((step for step in STEPS if share <= step), float("inf"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--write", action="store_true", help=f"keep the table in {RECORD.name}")
    args = parser.parse_args()
    tables, record = list_ops(), {}
    columns = [(table, dtype) for dtype in DTYPES for table in tables]
    print("largest error, as a share of what is allowed; where: of the last column")
    print(f"{'operation':<15}" + "".join(f"{table[:9] + ' ' + dtype[-2:]:>13}" for table, dtype in columns))
    for op in ROWS:
        found = {f"{table} {dtype}": worst_share(op, get_ops(table), dtype) for table, dtype in columns}
        record[op] = {name: rounded_up(share) for name, (share, _) in found.items()}
        print(f"{op:<15}" + "".join(f"{share:13.3f}" for share, _ in found.values()), [*found.values()][-1][1])
    if args.write:
        RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

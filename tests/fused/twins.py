"""An operation beside its twin: one call, forward and back, each way from either table, on arrays of any layout."""

from math import prod
from typing import Any, NamedTuple

import numpy as np
from homes import HOST, Home, arrays, leaves

from minifocal.ops import Op, Ops

GELU_ERROR = 5e-7  # of GELU and its slope in float32, as the fast twins promise
CONTAINS_GELU = ("gelu", "focal_level", "global_level")


class Normal(tuple):
    """The shape of an array of normal numbers."""


class SameForAllTokens(tuple):
    """The shape of such an array, of which one row for each image exists."""


class Case(NamedTuple):
    """A call: `Normal` stands for an array, everything else for itself.

    `upstream` is what comes back to each output; where it is None, normal numbers in the output's shape.
    """

    op: str
    note: str
    inputs: tuple[Any, ...]
    upstream: tuple[Any, ...] | None = None

    def __str__(self) -> str:
        return f"{self.op} {self.note}".strip()

    @property
    def terms(self) -> int:
        """Length of the longest sum: over the positions or the channels of an array, or over a kernel."""
        shapes = [spec for spec in self.inputs if isinstance(spec, Normal)]
        return max(max(prod(shape[:-1]), shape[-1]) for shape in shapes)


def _wider(array):
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(2, 1)], constant_values=np.nan)[..., 2:-1]


LAYOUTS = {  # the same numbers, elsewhere in memory
    "in order": np.ascontiguousarray,
    "part of wider rows": _wider,
    "channels first": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, -1, 1)), 1, -1),
    "columns first": lambda a: a.swapaxes(1, 2).copy().swapaxes(1, 2),
    "Fortran's order": np.asfortranarray,
    "backwards": lambda a: a[:, ::-1, :, ::-1].copy()[:, ::-1, :, ::-1],
    "every other row": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "every other token": lambda a: np.repeat(a, 2, axis=2)[:, :, ::2],
}


def draw(spec: Any, rng: np.random.Generator, dtype: str, layout: str) -> Any:
    """Draw what a spec stands for; maps (B, H, W, C) in the layout."""
    if isinstance(spec, SameForAllTokens):
        row = rng.standard_normal((spec[0], 1, 1, spec[3])).astype(dtype)
        return np.broadcast_to(row, spec)
    if isinstance(spec, Normal):
        array = rng.standard_normal(spec).astype(dtype)
        return LAYOUTS[layout](array) if array.ndim == 4 else array
    if isinstance(spec, tuple):
        return tuple(draw(part, rng, dtype, layout) for part in spec)
    return spec


def shapes_of(outputs: Any) -> Any:
    return Normal(outputs.shape) if hasattr(outputs, "shape") else tuple(map(shapes_of, outputs))


def op_of(table: Ops, name: str) -> Op:
    """An operation of a table, its cache last; a function without a way back gets one."""
    op = getattr(table, name)
    if not isinstance(op, Op):
        return Op(lambda *inputs: (op(*inputs), ()), lambda dy, cache: dy)
    if name == "cross_entropy":
        return Op(op.forward, lambda dloss, cache: op.backward(cache, dloss))
    return op


def make(case: Case, op: Op, dtype: str, layout: str = "in order", writeable: bool = True) -> tuple[tuple, tuple]:
    """Give the inputs of a case, and what comes back to the outputs."""
    rng = np.random.default_rng(sum(map(ord, str(case))))
    inputs = draw(case.inputs, rng, dtype, layout)
    *outputs, _ = op.forward(*inputs)
    upstream = draw(shapes_of(outputs) if case.upstream is None else case.upstream, rng, dtype, layout)
    for array in arrays((inputs, upstream)):
        array.flags.writeable &= writeable
    return inputs, upstream


def go(forward: Any, backward: Any, inputs: tuple, upstream: tuple) -> tuple:
    """Give the outputs, the cache and the gradients of a call.

    A BLAS has been seen to raise, once in many runs, the flag of an invalid operation in a product of finite numbers.
    The flag counts for nothing here: what comes out is compared.
    """
    with np.errstate(invalid="ignore"):
        *outputs, cache = forward(*inputs)
        return outputs, cache, backward(*upstream, cache)


def check_twins(
    fast: Op,
    reference: Op,
    case: Case,
    dtype: str,
    layout: str = "in order",
    writeable: bool = True,
    home: Home = HOST,
    gelu_error: float = GELU_ERROR,
) -> None:
    """Assert that the fast ways give what the reference's give, together and each with the other's other way.

    On another home than the host, all ways compute there; what is wanted is always the host's.

    The tolerance: two sums of n numbers in different orders differ by some n roundings of the largest number around, a
    function by a few, and in float32 GELU by its own error, which sums gather as they gather roundings.
    """
    inputs, upstream = make(case, reference, dtype, layout, writeable)
    before = [array.copy() for array in arrays((inputs, upstream))]
    want = go(*reference, inputs, upstream)
    largest = max(1.0, *(float(np.abs(array).max()) for array in arrays(want)))
    error = 8 * float(np.finfo(dtype).eps) + gelu_error * (dtype == "float32" and case.op in CONTAINS_GELU)
    there = home.put(inputs), home.put(upstream)
    for pair in (fast, (fast.forward, reference.backward), (reference.forward, fast.backward)):
        got = home.get(go(*pair, *there))
        for one, other in zip(leaves(got), leaves(want), strict=True):
            if hasattr(other, "strides"):
                assert one.dtype == other.dtype == dtype
                assert one.shape == other.shape
                np.testing.assert_allclose(one, other, rtol=0, atol=error * case.terms * largest)
            else:
                assert one == other  # None where there is no gate, and sizes
        assert type(got[1]) is type(want[1])
    for array, kept in zip(arrays(home.get(there)), before, strict=True):
        np.testing.assert_array_equal(array, kept, "something given was written into")

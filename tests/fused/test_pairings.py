"""The fast operations equal the reference's in every pairing of ways: all shapes and layouts, in blocks, in threads.

Wrong formulas show in float64, where the tolerance is some thousand roundings; in float32 few have code of their own.
"""

import importlib

import numpy as np
import pytest
from twins import LAYOUTS, Case, Normal, SameForAllTokens, arrays, check_twins, go, make

from minifocal.ops import REFERENCE, Op, get_ops, list_ops

B, H, W, C = 2, 5, 4, 3
TABLES = list_ops()[1:]
KERNELS, CHANNELS, WIDTHS = (1, 3, 5, 7, 9), (1, 3, 16, 17, 40), (1, 2, 3, 4, 7)  # a vector holds 16 float32


def elementwise(*leading):
    """The operations that look at a position alone, on maps of any leading shape."""
    x = Normal((*leading, C))
    return [
        Case("linear", f"on {x}", (x, Normal((C, 7)), Normal((7,)))),
        Case("gelu", f"on {x}", (x,)),
        Case("gelu_tanh", f"on {x}", (x,)),
        Case("sigmoid", f"on {x}", (x,)),
        Case("layer_norm", f"on {x}", (x, Normal((C,)), Normal((C,)), 0.1)),
        Case("layer_scale", f"on {x}", (x, Normal((C,)))),
    ]


def levels(B, H, W, C, k):
    """Convolutions and focal levels, as the first, a middle and the last level call them."""
    x, gate, weight = Normal((B, H, W, C)), Normal((B, H, W, 1)), Normal((k, k, C))
    note = f"{k}x{k} on {x}"
    return [
        Case("depthwise_conv", note, (x, weight)),
        Case("focal_level", note, (x, weight, gate, x)),
        Case("focal_level", f"{note}, the only one, ungated", (x, weight, None, 0.0), (0.0, x)),
        Case("focal_level", f"{note}, under the global one", (x, weight, gate, x), (SameForAllTokens(x), x)),
    ]


def maps(B, H, W, C):
    """What takes maps only."""
    x, gate, weight = Normal((B, H, W, C)), Normal((B, H, W, 1)), Normal((3, 3, C))
    same = SameForAllTokens(x)
    return [
        Case("global_level", f"on {x}", (x, gate, x)),
        Case("global_level", f"on {x}, the only one", (x, gate, 0.0)),
        Case("focal_level", f"on {x}, first", (x, weight, gate, 0.0)),
        Case("focal_level", f"on {x}, ungated, from above the same", (x, weight, None, x), (same, x)),
        Case("modulate", f"on {x}", (x, x)),
        Case("add", f"on {x}", (x, x)),
        Case("split", f"on {x}", (x, (C - C // 2, C // 2))),
        Case("mean_pool", f"on {x}", (x,)),
        Case("box_mean", f"on {x}", (x, 6)),
        Case("patches", f"on {x}", (x, 2, 1)),
    ]


def rows_of(C):
    """What sums over channels, with as many as a vector holds, fewer and more."""
    x = Normal((B, H, W, C))
    return [
        Case("linear", f"to and from {C}", (x, Normal((C, C + 2)), Normal((C + 2,)))),
        Case("layer_norm", f"of {C}", (x, Normal((C,)), Normal((C,)))),
        Case("layer_scale", f"of {C}", (x, Normal((C,)))),
        *maps(B, H, W, C)[:5],
    ]


# Every kernel size with every channel count and every width: a Latin square. Large kernels are larger than the maps.
SQUARE = [(k, C, WIDTHS[(i + j) % 5]) for i, k in enumerate(KERNELS) for j, C in enumerate(CHANNELS)]
CASES = [
    *elementwise(B, H, W),
    *elementwise(1, 2, 7),
    *elementwise(7),
    *elementwise()[1:4],
    *maps(B, H, W, C),
    *maps(1, 3, 2, 5),
    *(case for C in CHANNELS for case in rows_of(C)),
    *(case for k, C, W in SQUARE for case in levels(B, H, W, C, k)),
    *levels(1, 6, 4, 17, 3),
    *levels(4, 1, 1, 3, 5),
]
ON_MAPS = [*elementwise(B, H, W), *maps(B, H, W, C), *levels(B, H, W, C, 3), *levels(3, 2, 7, 17, 5)]


def op_of(table, name):
    """An operation of a table; a function without a way back gets one."""
    op = getattr(table, name)
    return op if isinstance(op, Op) else Op(lambda *inputs: (op(*inputs), ()), lambda dy, cache: dy)


def overrides(table):
    return importlib.import_module(f"minifocal.fused.{table}_ops").OVERRIDES


def of_each_table(cases):
    """Pairs of a table and a case of an operation that it replaces."""
    pairs = [(table, case) for table in TABLES for case in cases if case.op in overrides(table)]
    return pytest.mark.parametrize(("table", "case"), pairs, ids=str)


def check(table, case, dtype, *options):
    check_twins(op_of(get_ops(table), case.op), op_of(REFERENCE, case.op), case, dtype, *options)


@pytest.mark.parametrize("table", TABLES)
def test_every_operation_that_is_replaced_has_its_case(table):
    elsewhere = {"sgd_update", "adamw_update", "clip"}
    assert overrides(table).keys() - elsewhere <= {case.op for case in CASES} & {case.op for case in ON_MAPS}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@of_each_table(CASES)
def test_every_pairing_equals_the_reference(table, case, dtype, every_way):
    check(table, case, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@of_each_table(ON_MAPS)
def test_maps_may_lie_in_memory_as_they_like(table, case, layout, every_way):
    check(table, case, "float64", layout)


@of_each_table(ON_MAPS)
def test_read_only_arrays_are_no_obstacle(table, case):
    check(table, case, "float32", "in order", False)


@of_each_table(ON_MAPS)
def test_the_same_call_gives_the_same_bits(table, case, three_threads):
    op = op_of(get_ops(table), case.op)
    inputs, upstream = make(case, op, "float32")
    first, second = (arrays(go(*op, inputs, upstream)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("table", TABLES)
def test_a_result_is_not_overwritten_by_the_next_one(table, three_threads):
    """Memory is used again only when nobody looks at it: here blocks are large enough for that."""
    for case in [*elementwise(8, 32, 32), *maps(8, 32, 32, 9), *levels(8, 32, 32, 9, 3)]:
        op = op_of(get_ops(table), case.op)
        inputs, upstream = make(case, op, "float64")
        first = arrays(go(*op, inputs, upstream))
        kept = [array.copy() for array in first]
        go(*op, tuple(-x if isinstance(x, np.ndarray) else x for x in inputs), upstream)
        for array, copy in zip(first, kept, strict=True):
            np.testing.assert_array_equal(array, copy, str(case))


@pytest.mark.parametrize("table", TABLES)
def test_layer_norm_keeps_its_digits_where_the_mean_is_large(table):
    offset = 2.0**20
    rng = np.random.default_rng(1)
    x = np.round(rng.standard_normal((B, H, W, C)) * 2**10) / 2**10  # so that adding the offset loses nothing
    weight, bias = rng.standard_normal((2, C))
    (near, _), (far, _) = (get_ops(table).layer_norm.forward(x + o, weight, bias, 0.1) for o in (0.0, offset))
    # The mean is rounded to eps * offset, and divided by 0.3 at least; a difference of squares loses eps * offset².
    np.testing.assert_allclose(far, near, rtol=0, atol=16 * C * np.finfo("float64").eps * offset / 0.3)

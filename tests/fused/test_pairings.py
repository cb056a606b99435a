"""The fast operations equal the reference's in every pairing of ways: all shapes and layouts, in blocks, in threads.

Wrong formulas show in float64, where the tolerance is some thousand roundings; in float32 few have code of their own.
"""

import importlib

import numpy as np
import pytest
from cases import CASES, ON_MAPS, B, C, H, W, elementwise, levels, maps
from twins import LAYOUTS, arrays, check_twins, go, make, op_of

from minifocal.ops import REFERENCE, get_ops, list_ops

TABLES = list_ops()[1:]


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

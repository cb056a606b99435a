"""The fast updates make the reference's steps, for all parameters at once, in blocks and in threads."""

import numpy as np
import pytest

from minifocal.arrays import overflow_is_looked_for
from minifocal.functional.updates import UpdateRow
from minifocal.ops import REFERENCE, get_ops, list_ops

STEPS = 5
SHAPES = [(7,), (1,), (5, 3), (3, 5, 4), (260, 257)]
SLOTS = {"sgd_update": 1, "adamw_update": 2}
OPTIONS = {
    "sgd_update": {"lr": 0.1, "momentum": 0.9, "nesterov": False},
    "adamw_update": {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-3},
}
every_table = pytest.mark.parametrize("table", list_ops()[1:])
any_table = pytest.mark.parametrize("table", list_ops())
every_update = pytest.mark.parametrize("name", SLOTS)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def rows_of(name, shapes, dtype, arrange=np.asarray):
    """Rows for parameters of these shapes, each with another weight decay; gradients are still zero."""
    rng, rows = np.random.default_rng(1), []
    for number, shape in enumerate(shapes):
        data, *state = (
            arrange(array)
            for array in [rng.standard_normal(shape).astype(dtype), *np.zeros((SLOTS[name], *shape), dtype)]
        )
        rows.append(UpdateRow(data, np.zeros(shape, dtype), tuple(state), 0.05 * number))
    return rows


def make_step(table, name, rows, count=1, **options):
    counted = {"steps": count} if name == "adamw_update" else {}
    getattr(get_ops(table), name)(rows, **(OPTIONS[name] | counted | options))


def assert_same_arrays(rows, others):
    for row, other in zip(rows, others, strict=True):
        for one, two in zip((row.data, *row.state), (other.data, *other.state), strict=True):
            np.testing.assert_array_equal(one, two)


def steps(table, name, shapes, dtype, arrange=np.asarray, **options):
    """Give the data and the states after some steps; each sees other gradients, which stay as they were."""
    rng, rows = np.random.default_rng(2), rows_of(name, shapes, dtype, arrange)
    for step in range(STEPS):
        gradients = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
        for gradient in gradients:
            gradient.flags.writeable = dtype == "float32"  # compiled for both
        kept = [gradient.copy() for gradient in gradients]
        now = [row._replace(grad=gradient) for row, gradient in zip(rows, gradients, strict=True)]
        make_step(table, name, now, step + 1, **options)
        for gradient, before in zip(gradients, kept, strict=True):
            np.testing.assert_array_equal(gradient, before)
    return [array for row in rows for array in (row.data, *row.state)]


def assert_same_steps(table, name, shapes, dtype, **options):
    want = steps("reference", name, shapes, dtype, **options)
    got = steps(table, name, shapes, dtype, **options)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == dtype
        # Some ten roundings a step of numbers below 8.
        np.testing.assert_allclose(one, other, rtol=0, atol=10 * STEPS * 8 * float(np.finfo(dtype).eps))


@every_dtype
@pytest.mark.parametrize("nesterov", [False, True])
@every_table
def test_sgd_makes_the_same_steps(table, nesterov, dtype, every_way):
    assert_same_steps(table, "sgd_update", SHAPES, dtype, nesterov=nesterov)


@every_dtype
@every_table
def test_adamw_makes_the_same_steps(table, dtype, every_way):
    assert_same_steps(table, "adamw_update", SHAPES, dtype)


@every_dtype
@every_update
@any_table
def test_parameters_get_the_same_bits_alone_and_together(table, name, dtype, every_way):
    """Who shares a step with whom, and in which thread, is no matter of the numbers."""
    together, alone = rows_of(name, SHAPES, dtype), rows_of(name, SHAPES, dtype)
    for row in (*together, *alone):
        row.grad[...] = row.data[::-1] + 0.3
    make_step(table, name, together)
    for row in alone:
        make_step(table, name, [row])
    assert_same_arrays(together, alone)


@every_update
@every_table
def test_parameters_may_lie_in_memory_as_they_like(table, name):
    """A flat copy of an array that is not in order would get the step, and the array none."""
    assert_same_steps(table, name, [(5, 3), (4, 2, 3)], "float64", arrange=np.asfortranarray)


@pytest.mark.parametrize("change", [{"nesterov": True}, {"momentum": 0.91}, {"lr": 0.1001}], ids=str)
def test_every_option_counts(change):
    """The comparison sees a wrong option."""
    one, other = (steps("reference", "sgd_update", [(5, 3)], "float64", **o)[0] for o in ({}, change))
    assert np.abs(one - other).max() > 1e-4


@every_update
@any_table
def test_every_row_has_its_own_weight_decay(table, name):
    one, other = rows_of(name, [(4, 2), (5, 3)], "float64"), rows_of(name, [(4, 2), (5, 3)], "float64")
    other[1] = other[1]._replace(weight_decay=0.5)
    make_step(table, name, one)
    make_step(table, name, other)
    np.testing.assert_array_equal(one[0].data, other[0].data)
    assert np.abs(one[1].data - other[1].data).max() > 1e-3


@every_update
@any_table
def test_a_step_to_skip_changes_no_bit_and_one_not_to_skip_is_made(table, name, every_way):
    """Whatever the gradients are: those that are not finite are what such a step is skipped for."""
    shapes = [(7,), (5, 3)]
    rows, want = rows_of(name, shapes, "float32"), rows_of(name, shapes, "float32")
    for row, bad in zip(rows, (np.nan, np.inf), strict=True):
        row.grad[...] = 0.3
        row.grad.flat[2] = bad
    with overflow_is_looked_for():
        make_step(table, name, rows, skip=np.array(True))
    assert_same_arrays(rows, want)
    for row in (*rows, *want):
        row.grad[...] = 0.3
    make_step(table, name, rows, skip=np.array(False))
    make_step(table, name, want)
    assert_same_arrays(rows, want)
    assert not np.array_equal(rows[0].data, rows_of(name, shapes, "float32")[0].data)


# Clipping


def gradients_of(dtype, scale=1.0):
    rng = np.random.default_rng(3)
    return [(scale * rng.standard_normal(shape)).astype(dtype) for shape in SHAPES]


@pytest.mark.parametrize("max_norm", [0.37, 1e4])
@every_dtype
@every_table
def test_clipping_gives_the_references_bits(table, dtype, max_norm, every_way):
    got, want = gradients_of(dtype), gradients_of(dtype)
    norm, wanted = get_ops(table).clip(got, max_norm), REFERENCE.clip(want, max_norm)
    assert norm == wanted
    assert np.asarray(norm).dtype == np.asarray(wanted).dtype == np.float64
    for one, other, before in zip(got, want, gradients_of(dtype), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == dtype
        assert np.array_equal(one, before) == (max_norm == 1e4)


@any_table
def test_the_norm_is_summed_in_the_gradients_dtype_and_the_rest_is_float64(table):
    gradients = gradients_of("float32")
    total = np.float32(0.0)
    for gradient in gradients:
        total += (gradient * gradient).sum()
    norm = float(total) ** 0.5
    factor = np.float32(0.37 / norm)
    want = [gradient * factor for gradient in gradients]
    assert float(get_ops(table).clip(gradients, 0.37)) == norm
    for one, other in zip(gradients, want, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("first", "rest"), [(0.0, 0.0), (np.nan, 0.25)], ids=["all zero", "one is NaN"])
@any_table
def test_gradients_without_a_norm_to_speak_of_stay(table, first, rest):
    gradients = [np.full(shape, rest, "float32") for shape in SHAPES]
    gradients[1][...] = first
    norm = get_ops(table).clip(gradients, 0.1 if np.isnan(first) else 1.0)
    np.testing.assert_array_equal(norm, first)
    assert all((gradient == rest).all() for gradient in [gradients[0], *gradients[2:]])
    np.testing.assert_array_equal(gradients[1], np.full((1,), first, "float32"))

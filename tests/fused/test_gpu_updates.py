"""The updates of the table "cuda" are the reference's, and one launch for all parameters."""

import numpy as np
import pytest
from homes import HostCompiled

from minifocal.functional.updates import UpdateRow
from minifocal.fused import gpu
from minifocal.ops import GPU_TABLE, REFERENCE, get_ops

FUSED = get_ops(GPU_TABLE, "cuda")
SHAPES = [(7,), (1,), (5, 3), (3, 5, 4), (130, 97)]  # the last one is of several chunks
OPTIONS = {
    "sgd_update": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "adamw_update": {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-3, "steps": 3},
}
every_update = pytest.mark.parametrize("name", OPTIONS)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def rows_of(name, dtype, arrange=np.asarray):
    rng = np.random.default_rng(1)
    arrays = [[arrange(rng.uniform(0.5, 2.0, shape).astype(dtype)) for _ in range(4)] for shape in SHAPES]
    slots = 1 if name == "sgd_update" else 2
    return [UpdateRow(a[0], a[1], tuple(a[2 : 2 + slots]), 0.05 * n) for n, a in enumerate(arrays)]


def step(table, name, rows, **options):
    getattr(table, name)(rows, **(OPTIONS[name] | options))


def assert_same(got, want, dtype):
    for row, other in zip(got, want, strict=True):
        for one, two in zip((row.data, row.grad, *row.state), (other.data, other.grad, *other.state), strict=True):
            np.testing.assert_allclose(one, two, rtol=0, atol=50 * 2.0 * np.finfo(dtype).eps)


@every_dtype
@every_update
@pytest.mark.parametrize("arrange", [np.asarray, np.asfortranarray], ids=["in order", "Fortran's order"])
def test_steps_are_the_references(name, dtype, arrange, home):
    want, there = rows_of(name, dtype, arrange), home.put(rows_of(name, dtype, arrange))
    for _ in range(3):
        step(REFERENCE, name, want)
        step(FUSED, name, there)
    assert_same(home.get(there), want, dtype)


@pytest.mark.parametrize("change", [{"nesterov": False}, {"momentum": 0.5}, {"lr": 0.2}], ids=str)
def test_every_option_counts(change, home):
    want, there = rows_of("sgd_update", "float64"), home.put(rows_of("sgd_update", "float64"))
    step(REFERENCE, "sgd_update", want)
    step(FUSED, "sgd_update", there, **change)
    with pytest.raises(AssertionError):
        assert_same(home.get(there), want, "float64")


@every_update
def test_a_step_that_is_skipped_changes_nothing(name, home):
    for skip in (True, False):
        want, there = rows_of(name, "float32"), home.put(rows_of(name, "float32"))
        if not skip:
            step(REFERENCE, name, want)
        step(FUSED, name, there, skip=home.put(np.array(skip)))
        assert_same(home.get(there), want, "float32")


@every_dtype
@pytest.mark.parametrize("max_norm", [5.0, 1e6])
def test_clipping_is_the_references(max_norm, dtype, home):
    want = [row.grad for row in rows_of("sgd_update", dtype)]
    there = home.put([gradient.copy() for gradient in want])
    norm = REFERENCE.clip(want, max_norm)
    got = FUSED.clip(there, max_norm)
    count = sum(gradient.size for gradient in want)
    np.testing.assert_allclose(home.get(got), norm, rtol=count * np.finfo(dtype).eps)
    for one, other in zip(home.get(there), want, strict=True):
        np.testing.assert_allclose(one, other, rtol=count * np.finfo(dtype).eps)


def test_squares_beyond_float32_do_not_overflow(home):
    gradients = [np.full((3, 2), 1e30, dtype="float32")]
    (there,) = home.put(gradients)
    np.testing.assert_allclose(home.get(FUSED.clip([there], 1.0)), 1e30 * np.sqrt(6), rtol=1e-6)
    np.testing.assert_allclose(home.get(there), 1 / np.sqrt(6), rtol=1e-6)


def test_a_norm_that_is_no_number_scales_nothing(home):
    (there,) = home.put([np.array([1.0, np.nan, 3.0])])
    assert np.isnan(home.get(FUSED.clip([there], 0.1)))
    np.testing.assert_array_equal(home.get(there), [1.0, np.nan, 3.0])


@pytest.mark.parametrize("bad", [None, np.nan, np.inf])
def test_unscaling_is_the_references(bad, home):
    gradients = [row.grad for row in rows_of("sgd_update", "float32")]
    if bad is not None:
        gradients[3][1, 2, 0] = bad
    there, scale = home.put([gradient.copy() for gradient in gradients]), np.array(1024.0, dtype="float32")
    assert bool(home.get(FUSED.unscale(there, home.put(scale)))) == bool(REFERENCE.unscale(gradients, scale))
    for one, other in zip(home.get(there), gradients, strict=True):
        np.testing.assert_array_equal(one, other)


def test_all_parameters_take_one_launch_and_one_table(host_compiled, monkeypatch):
    assert isinstance(host_compiled, HostCompiled)
    host_compiled.take_the_place_of_cupy(monkeypatch)
    rows = host_compiled.put(rows_of("sgd_update", "float32"))
    launched, moved = host_compiled.gpu.launched, host_compiled.library.to_device
    launched.clear()
    moved.clear()
    step(FUSED, "sgd_update", rows)
    assert launched == ["sgd_update<float>"]
    assert moved == [(5, 6), (8, 2)]  # where the parameters lie: told once
    step(FUSED, "sgd_update", rows)
    assert launched == 2 * ["sgd_update<float>"]
    assert len(moved) == 2
    elsewhere = [row._replace(grad=row.grad.copy()) for row in rows]
    step(FUSED, "sgd_update", elsewhere)
    assert len(moved) == 4


def test_another_weight_decay_makes_another_table(home):
    """An optimizer's may be changed between steps, while all arrays stay where they are."""
    want, there = rows_of("sgd_update", "float64"), home.put(rows_of("sgd_update", "float64"))
    for decay in (0.1, 0.4):
        step(REFERENCE, "sgd_update", [row._replace(weight_decay=decay) for row in want])
        step(FUSED, "sgd_update", [row._replace(weight_decay=decay) for row in there])
    assert_same(home.get(there), want, "float64")


def test_a_recording_keeps_the_table_that_it_reads(home, monkeypatch):
    """The table is older than the recording, and others may push it out of those that are kept."""
    kept = []
    monkeypatch.setattr(gpu, "keep", kept.append)
    gradients = home.put([row.grad for row in rows_of("sgd_update", "float32")])
    for _ in range(2):
        FUSED.clip(gradients, 1.0)
    tables = {id(table) for table in kept}
    assert len(tables) == 1
    assert home.get(kept[0].chunks).shape == (8, 2)


def test_gradients_that_lie_in_another_order_are_clipped_and_unscaled_as_the_reference_does(home):
    """One launch goes through memory as it lies: an array that is turned has none that fits."""
    for step_of in (
        lambda table, all_of, _: table.clip(all_of, 0.5),
        lambda table, all_of, s: table.unscale(all_of, s),
    ):
        want = [row.grad for row in rows_of("sgd_update", "float32", np.asfortranarray)]
        there, scale = home.put([gradient.copy("K") for gradient in want]), np.array(8.0, dtype="float32")
        got = home.get(step_of(FUSED, there, home.put(scale)))
        np.testing.assert_allclose(got, step_of(REFERENCE, want, scale), rtol=1e-6)
        for one, other in zip(home.get(there), want, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)

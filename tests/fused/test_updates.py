"""The fast updates make the reference's steps, in blocks and in threads."""

import numpy as np
import pytest

from minifocal.ops import REFERENCE, get_ops, list_ops

STEPS = 5
every_table = pytest.mark.parametrize("table", list_ops()[1:])
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
every_shape = pytest.mark.parametrize("shape", [(7,), (1,), (5, 3), (3, 5, 4), (260, 257)], ids=str)


def steps(update, slots, shape, dtype, arrange=np.asarray, **options):
    """Give the data and the slots after some steps; each sees another gradient, which stays as it was."""
    rng = np.random.default_rng(1)
    data, *state = (arrange(a) for a in [rng.standard_normal(shape).astype(dtype), *np.zeros((slots, *shape), dtype)])
    for step in range(STEPS):
        grad = rng.standard_normal(shape).astype(dtype)
        grad.flags.writeable = dtype == "float32"  # compiled for both
        kept = grad.copy()
        update(data, grad, *state, **(options | ({"steps": step + 1} if slots == 2 else {})))
        np.testing.assert_array_equal(grad, kept)
    return [data, *state]


def assert_same_steps(table, name, slots, shape, dtype, **options):
    want = steps(getattr(REFERENCE, name), slots, shape, dtype, **options)
    got = steps(getattr(get_ops(table), name), slots, shape, dtype, **options)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == dtype
        # Some ten roundings a step of numbers below 8.
        np.testing.assert_allclose(one, other, rtol=0, atol=10 * STEPS * 8 * float(np.finfo(dtype).eps))


@every_dtype
@every_shape
@pytest.mark.parametrize("nesterov", [False, True])
@every_table
def test_sgd_makes_the_same_steps(table, nesterov, shape, dtype, every_way):
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.05}
    assert_same_steps(table, "sgd_update", 1, shape, dtype, **options)


@every_dtype
@every_shape
@every_table
def test_adamw_makes_the_same_steps(table, shape, dtype, every_way):
    options = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.05}
    assert_same_steps(table, "adamw_update", 2, shape, dtype, **options)


@pytest.mark.parametrize(("name", "slots"), [("sgd_update", 1), ("adamw_update", 2)])
@every_table
def test_parameters_may_lie_in_memory_as_they_like(table, name, slots):
    """A flat copy of an array that is not in order would get the step, and the array none."""
    options = {
        "sgd_update": {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.05},
        "adamw_update": {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.05},
    }[name]
    assert_same_steps(table, name, slots, (5, 3), "float64", arrange=np.asfortranarray, **options)


@pytest.mark.parametrize(
    "change", [{"nesterov": True}, {"momentum": 0.91}, {"weight_decay": 0.0}, {"lr": 0.1001}], ids=str
)
def test_every_option_counts(change):
    """The comparison sees a wrong option."""
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.05}
    one, other = (steps(REFERENCE.sgd_update, 1, (5, 3), "float64", **o)[0] for o in (options, options | change))
    assert np.abs(one - other).max() > 1e-4

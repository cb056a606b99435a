"""Optimizers and clipping, against the formulas of their papers written out for one number at a time."""

import math

import numpy as np
import pytest
from strict_array import StrictLibrary

from minifocal.arrays import as_numpy
from minifocal.errors import InputError
from minifocal.layers.initializers import LeCun
from minifocal.layers.linear import Linear
from minifocal.training.optim import SGD, AdamW, clip_gradients

EPS = np.finfo(np.float64).eps


@pytest.fixture
def layer():
    layer = Linear(3, 2, init=LeCun(5, "float64"))
    layer.bias.data[...] = [0.7, -0.3]
    return layer


def gradients(layer, steps, seed=1):
    """The same random gradients at every call, a list of {name: gradient}."""
    rng = np.random.default_rng(seed)
    return [{name: rng.standard_normal(p.data.shape) for name, p in layer.named_parameters()} for _ in range(steps)]


def apply(layer, optimizer, steps):
    for step in gradients(layer, steps):
        for name, parameter in layer.named_parameters():
            parameter.grad[...] = step[name]
        optimizer.step()


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_follows_its_formula_for_every_number(layer, nesterov):
    start = {name: p.data.copy() for name, p in layer.named_parameters()}
    lr, momentum, decay, steps = 0.1, 0.8, 0.01, 4
    apply(layer, SGD(layer, lr, momentum=momentum, nesterov=nesterov, weight_decay=decay), steps)
    for name, parameter in layer.named_parameters():
        own_decay = decay if parameter.data.ndim > 1 else 0.0
        for index in np.ndindex(parameter.data.shape):
            x, v = start[name][index], 0.0
            for step in gradients(layer, steps):
                g = step[name][index] + own_decay * x
                v = momentum * v + g
                x -= lr * (g + momentum * v if nesterov else v)
            assert abs(parameter.data[index] - x) <= 50 * EPS * max(1.0, abs(x))


def test_adamw_follows_its_formula_for_every_number(layer):
    start = {name: p.data.copy() for name, p in layer.named_parameters()}
    lr, (b1, b2), eps, decay, steps = 0.02, (0.8, 0.95), 1e-8, 0.1, 4
    apply(layer, AdamW(layer, lr, betas=(b1, b2), eps=eps, weight_decay=decay), steps)
    for name, parameter in layer.named_parameters():
        own_decay = decay if parameter.data.ndim > 1 else 0.0
        for index in np.ndindex(parameter.data.shape):
            x, m, v = start[name][index], 0.0, 0.0
            for t, step in enumerate(gradients(layer, steps), start=1):
                g = step[name][index]
                m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
                x = (1 - lr * own_decay) * x - lr * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + eps)
            assert abs(parameter.data[index] - x) <= 200 * EPS * max(1.0, abs(x))


@pytest.mark.parametrize("make", [SGD, AdamW])
def test_weight_decay_spares_vectors_unless_all_is_asked_for(layer, make):
    before = {name: p.data.copy() for name, p in layer.named_parameters()}
    make(layer, 0.1, weight_decay=0.5).step()  # gradients are zero: only decay moves anything
    assert not np.array_equal(layer.weight.data, before["weight"])
    assert np.array_equal(layer.bias.data, before["bias"])
    make(layer, 0.1, weight_decay=0.5, decay_all=True).step()
    assert not np.array_equal(layer.bias.data, before["bias"])


@pytest.mark.parametrize("make", [SGD, AdamW])
def test_updates_keep_float32_and_change_parameters_in_place(make):
    layer = Linear(3, 2, init=LeCun(5, "float32"))
    arrays = [p.data for p in layer.parameters()]
    layer.weight.grad += 1.0
    optimizer = make(layer, 0.1)
    optimizer.step()
    assert [p.data for p in layer.parameters()] == [pytest.approx(a) for a in arrays]
    assert all(p.data is a and a.dtype == np.float32 for p, a in zip(layer.parameters(), arrays, strict=True))
    assert all(a.dtype == np.float32 for a in optimizer.state_dict().values())


@pytest.mark.parametrize("make", [SGD, AdamW])
def test_an_optimizer_that_was_saved_goes_on_as_if_it_never_was(make):
    one, other = Linear(3, 2, init=LeCun(5, "float64")), Linear(3, 2, init=LeCun(5, "float64"))
    straight, before = make(one, 0.1), make(other, 0.1)
    apply(one, straight, 3)
    apply(other, before, 3)
    after = make(other, 0.1)
    after.load_state_dict({name: a.copy() for name, a in before.state_dict().items()}, before.steps)
    apply(one, straight, 2)
    apply(other, after, 2)
    assert np.array_equal(one.weight.data, other.weight.data)
    assert after.steps == 5


def test_the_state_of_another_optimizer_is_refused(layer):
    with pytest.raises(InputError, match="not of AdamW"):
        AdamW(layer).load_state_dict(SGD(layer, 0.1).state_dict(), 1)


def test_clipping_scales_all_gradients_together_to_the_largest_norm(layer):
    rng = np.random.default_rng(2)
    for parameter in layer.parameters():
        parameter.grad[...] = rng.standard_normal(parameter.grad.shape)
    before = np.concatenate([p.grad.ravel() for p in layer.parameters()])
    norm = clip_gradients(layer, 0.5)
    after = np.concatenate([p.grad.ravel() for p in layer.parameters()])
    assert norm == pytest.approx(np.linalg.norm(before), rel=10 * EPS)
    np.testing.assert_allclose(after, before * 0.5 / np.linalg.norm(before), rtol=20 * EPS)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan")])
def test_clipping_to_no_norm_is_refused(layer, max_norm):
    with pytest.raises(InputError, match="must be above 0"):
        clip_gradients(layer, max_norm)


def test_clipping_leaves_short_gradients_alone(layer):
    layer.weight.grad[...] = 0.01
    clip_gradients(layer, 5.0)
    assert (layer.weight.grad == 0.01).all()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (SGD, {"lr": -0.1}, "lr must be at least 0"),
        (SGD, {"lr": float("nan")}, "lr must be at least 0 and finite, got nan"),
        (SGD, {"lr": 0.1, "momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
        (AdamW, {"weight_decay": -1.0}, "weight_decay must be at least 0"),
        (AdamW, {"betas": (0.9, 1.5)}, r"betas must lie in \[0, 1\)"),
    ],
)
def test_impossible_settings_are_refused(layer, make, options, message):
    with pytest.raises(InputError, match=message):
        make(layer, **options)


def with_state(optimizer):
    return [a.copy() for a in [*(p.data for p in optimizer.parameters.values()), *optimizer.state_dict().values()]]


@pytest.mark.parametrize("make", [SGD, AdamW])
def test_the_rows_are_made_once_and_again_when_something_was_replaced(layer, make, monkeypatch):
    """A step that still saw the old array would leave the new one as it is."""
    optimizer, seen = make(layer, 0.1, weight_decay=0.0), []
    monkeypatch.setattr(optimizer, "_update", lambda rows, skip: seen.append(rows))
    for _ in range(2):
        optimizer.step()
    assert seen[0] is seen[1]
    layer.weight.data = layer.weight.data.copy()
    optimizer.step()
    assert seen[2] is not seen[1]
    assert seen[2][0].data is layer.weight.data
    layer.bias.grad = layer.bias.grad.copy()
    optimizer.step()
    assert seen[3][1].grad is layer.bias.grad
    optimizer.weight_decay = 0.25
    optimizer.step()
    assert [row.weight_decay for row in seen[4]] == [0.25, 0.0]
    optimizer.decay_all = True
    optimizer.step()
    assert [row.weight_decay for row in seen[5]] == [0.25, 0.25]


@pytest.mark.parametrize("make", [SGD, AdamW])
def test_a_step_after_the_model_was_moved_is_refused(layer, make):
    optimizer, library = make(layer, 0.1), StrictLibrary()
    optimizer.step()
    for parameter in layer.parameters():
        parameter.data, parameter.grad = library.asarray(parameter.data), library.asarray(parameter.grad)
    for _ in range(2):
        with pytest.raises(TypeError, match=r"two homes: strict array .* and numpy array"):
            optimizer.step()
    assert optimizer.steps == 1


@pytest.mark.parametrize("make", [SGD, AdamW])
def test_a_step_on_a_device_gives_numpys_bits_and_moves_nothing(make):
    """With and without one that is skipped; the norm of the gradients stays on the device too."""
    results, library = [], StrictLibrary()
    for home in (np, library):
        layer = Linear(3, 2, init=LeCun(5, "float32"))
        for parameter in layer.parameters():
            parameter.data, parameter.grad = home.asarray(parameter.data), home.asarray(parameter.grad + 0.3)
        optimizer, skips = make(layer, 0.1), [home.asarray(np.array(skip)) for skip in (True, False)]
        library.to_device.clear()
        for max_norm, skip in ((0.5, None), (50.0, skips[0]), (0.25, skips[1])):
            norm = clip_gradients(layer, max_norm)
            optimizer.step(skip)
        assert library.to_host == library.to_device == []
        results.append([as_numpy(array) for array in (norm, *layer.state_dict().values())])
        library.to_host.clear()
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


@pytest.mark.parametrize("make", [SGD, AdamW])
def test_a_skipped_step_changes_nothing_and_is_counted(layer, make):
    optimizer = make(layer, 0.1)
    apply(layer, optimizer, 2)
    before = with_state(optimizer)
    optimizer.step(np.array(True))
    for one, other in zip(with_state(optimizer), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert optimizer.steps == 3
    optimizer.step(np.array(False))
    assert all(not np.array_equal(*pair) for pair in zip(with_state(optimizer), before, strict=True))

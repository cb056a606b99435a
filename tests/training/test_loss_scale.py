"""Loss scaling: small gradients survive float16, large ones cost a step, and nothing else changes a bit."""

import os
import signal
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
from strict_array import StrictLibrary

import minifocal as mf
from minifocal.arrays import as_numpy, overflow_is_looked_for, random_generator
from minifocal.data import Dataset, Standardize
from minifocal.errors import InputError
from minifocal.ops import Op, Ops, get_ops, list_ops
from minifocal.training import loss_scale
from minifocal.training.loss_scale import LARGEST, LEAST, START, LossScaler
from minifocal.training.optim import SGD, AdamW
from minifocal.training.step import train_step
from minifocal.training.train_config import TrainConfig
from minifocal.training.trainer import LAST, Listener, Trainer

any_table = pytest.mark.parametrize("table", list_ops())
every_optimizer = pytest.mark.parametrize("make", [SGD, AdamW])


def network(ops="reference", seed=3, **options):
    return mf.FocalNet.build(
        image_size=4, patch_size=2, in_channels=1, hidden_size=6, num_layers=2, focal_levels=1, num_classes=3,
        init="lecun", drop_path_rate=0.3, seed=seed, ops=ops, **options,
    )  # fmt: skip


def batch(count=5, dtype="float32"):
    rng = np.random.default_rng(1)
    return rng.standard_normal((count, 1, 4, 4)).astype(dtype), rng.integers(0, 3, count)


def train(model, make, scaler, steps=4, **options):
    optimizer, rng = make(model, 0.05), random_generator(2)
    records = [
        train_step(model, optimizer, *batch(dtype=model.dtype), rng, scaler=scaler, **options) for _ in range(steps)
    ]
    return optimizer, records


def arrays(model, optimizer):
    return {**model.state_dict(), **optimizer.state_dict()}


def copies(*parts):
    return {name: array.copy() for name, array in arrays(*parts).items()}


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(as_numpy(got[name]), as_numpy(array), err_msg=name)


def state(scaler):
    return float(scaler.scale), int(scaler.good_steps)


def in_float16(ops, factor=1.0):
    """A table whose gradients pass through float16 at the head, times a factor."""

    def backward(cache, dloss):
        with overflow_is_looked_for():
            return (factor * ops.cross_entropy.backward(cache, dloss)).astype("float16").astype("float32")

    return replace(ops, cross_entropy=Op(ops.cross_entropy.forward, backward))


# What it changes, and what not


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("clip_norm", [None, 0.3])
@every_optimizer
def test_a_power_of_two_changes_no_bit(make, clip_norm, dtype):
    plain, scaled = network(dtype=dtype), network(dtype=dtype)
    one, records = train(plain, make, None, clip_norm=clip_norm)
    two, others = train(scaled, make, LossScaler(scaled), clip_norm=clip_norm)
    assert_same(arrays(scaled, two), arrays(plain, one))
    assert records == others


@any_table
def test_a_batch_shared_by_threads_is_scaled_as_a_whole(table, monkeypatch):
    """Each share's weight is rounded once more, so the last digit may differ."""
    monkeypatch.setattr("minifocal.threads.thread_count", lambda: 3)
    plain, scaled = network(table), network(table)
    _, records = train(plain, SGD, None, steps=1)
    _, others = train(scaled, SGD, LossScaler(scaled), steps=1)
    assert records == others
    for parameter, other in zip(plain.parameters(), scaled.parameters(), strict=True):
        tolerance = 100 * float(np.finfo("float32").eps) * float(np.abs(parameter.grad).max())
        np.testing.assert_allclose(other.grad, parameter.grad, rtol=0, atol=tolerance)


def test_gradients_too_small_for_float16_are_lost_without_it():
    factor = 2.0**-28  # one of 0.1 becomes 4e-10; the smallest float16 is 6e-8
    ops = in_float16(get_ops("reference"), factor)
    lost, kept, want = network(), network(), network()
    for model in (lost, kept):
        model.use_ops(ops)
    train(lost, SGD, None, steps=1)
    assert not any(parameter.grad.any() for parameter in lost.parameters())
    train(kept, SGD, LossScaler(kept), steps=1)
    train(want, SGD, None, steps=1)
    for parameter, exact in zip(kept.parameters(), want.parameters(), strict=True):
        # float16 has 11 bits, and fewer below 2^-14.
        tolerance = 0.01 * np.abs(exact.grad).max()
        np.testing.assert_allclose(parameter.grad / factor, exact.grad, rtol=0, atol=tolerance)


@every_optimizer
def test_an_overflow_skips_the_step_and_halves_the_scale_until_none_overflows(make):
    """The largest float16 is 65504, and a gradient of 0.1 becomes 2e5."""
    model = network()
    model.use_ops(in_float16(get_ops("reference"), 2.0**6))
    scaler, optimizer, rng = LossScaler(model), make(model, 0.05), random_generator(2)
    before, scales = copies(model, optimizer), []
    for _ in range(12):
        with overflow_is_looked_for():
            record = train_step(model, optimizer, *batch(), rng, clip_norm=1.0, scaler=scaler)
        scale, good = state(scaler)
        scales.append(scale)
        assert np.isfinite(record.loss)
        if good:
            break
        assert_same(arrays(model, optimizer), before)
    assert scales[:3] == [START / 2, START / 4, START / 8]
    assert len(scales) > 3
    assert scales[-1] == scales[-2]
    assert optimizer.steps == len(scales)
    assert all(np.isfinite(array).all() for array in arrays(model, optimizer).values())
    assert not np.array_equal(model.head.weight.data, before["head.weight"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@any_table
def test_one_gradient_that_is_not_finite_is_enough_wherever_it_is(table, bad):
    model = network(table)
    for number in (None, *range(len(list(model.parameters())))):
        scaler = LossScaler(model)
        for index, parameter in enumerate(model.parameters()):
            parameter.grad[...] = 3.0
            if index == number:
                parameter.grad.flat[-1] = bad
        skip = scaler.unscale(model)
        assert skip.shape == ()
        assert bool(skip) == (number is not None)
        assert state(scaler) == ((START, 1) if number is None else (START / 2, 0))
        assert all(p.grad.flat[0] in (3.0 / START, bad / START) or np.isnan(bad) for p in model.parameters())


def test_the_scale_is_doubled_after_good_steps_in_a_row_and_stays_within_its_limits(monkeypatch):
    monkeypatch.setattr(loss_scale, "GROW_AFTER", 3)
    model = network()
    scaler = LossScaler(model)

    def after(value):
        next(model.parameters()).grad[...] = value
        scaler.unscale(model)
        return state(scaler)

    assert [after(1.0) for _ in range(4)] == [(START, 1), (START, 2), (2 * START, 0), (2 * START, 1)]
    assert [after(v) for v in (1.0, np.inf, 1.0, 1.0)] == [(2 * START, 2), (START, 0), (START, 1), (START, 2)]
    assert after(1.0) == (2 * START, 0)
    for _ in range(60):
        after(1.0)
    assert scaler.scale == LARGEST
    for _ in range(60):
        after(np.nan)
    assert scaler.scale == LEAST


# On a device


@every_optimizer
def test_a_device_gives_the_hosts_bits_and_is_not_waited_for(make):
    """Among them steps that are skipped."""
    results = []
    for library in (None, StrictLibrary()):
        model, home = network(), library or np
        for parameter in model.parameters():
            parameter.data, parameter.grad = home.asarray(parameter.data), home.asarray(parameter.grad)
        scaler, optimizer, rng = LossScaler(model), make(model, 0.05), random_generator(2)
        scaler.scale[...] = 2.0**24
        factor = 2.0**106  # a gradient of 0.1 becomes 1.4e38; the largest float32 is 3.4e38
        images, labels = (home.asarray(array) for array in batch())
        model.use_ops(replace(model.ops, cross_entropy=scaled_up(model.ops.cross_entropy, factor)))
        if library is not None:
            library.to_device.clear()
        with overflow_is_looked_for():
            for _ in range(4):
                train_step(model, optimizer, images, labels, rng, clip_norm=0.5, scaler=scaler)
        if library is not None:
            assert library.to_host == []
            assert set(library.to_device) == {(5,)}  # draws
        results.append({**arrays(model, optimizer), **scaler.state_dict()})
        assert as_numpy(scaler.scale) < 2.0**24
        assert as_numpy(scaler.good_steps) > 0
    assert_same(results[1], results[0])


def scaled_up(op, factor):
    return Op(op.forward, lambda cache, dloss: factor * op.backward(cache, dloss))


# Kept with a run


@dataclass(frozen=True, kw_only=True)
class Float16(Ops):
    """A table that says it computes in float16."""

    precision: str = "float16"


def data(count, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 80, (count, 1, 4, 4)) + 80 * labels[:, None, None, None]
    return Dataset(images.astype(np.uint8), labels, ("a", "b", "c"))


def make_trainer(folder=None, listener=None, seed=3, float16=True):
    model = network(seed=seed)
    if float16:
        ops = in_float16(model.ops, 2.0**5)
        values = {field.name: getattr(ops, field.name) for field in fields(Ops) if field.name != "precision"}
        model.use_ops(Float16(**values))
    train = data(22)
    config = TrainConfig(epochs=3, batch_size=5, lr=0.05, warmup_steps=2)
    return Trainer(model, train, data(7, 1), Standardize.fit(train), config, folder=folder, listener=listener)


class StopAfter(Listener):
    def __init__(self, step):
        self.step = step

    def on_step(self, step, total, record, images):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_model_that_computes_in_float16_is_trained_with_a_scaler_and_others_are_not():
    assert make_trainer(float16=False).scaler is None
    trainer = make_trainer()
    trainer.fit()
    assert trainer.history[-1]["train_loss"] < trainer.history[0]["train_loss"]
    scale, good = state(trainer.scaler)
    assert scale < START
    assert 0 < good <= trainer.optimizer.steps == 15


@pytest.mark.parametrize("stop_at", [1, 2, 7])
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bits(tmp_path, stop_at, monkeypatch):
    """The scale too: it is halved in the first steps, and doubled in between."""
    monkeypatch.setattr(loss_scale, "GROW_AFTER", 4)
    straight = make_trainer()
    assert straight.fit()
    assert not make_trainer(tmp_path, StopAfter(stop_at)).fit()
    resumed = make_trainer(tmp_path, seed=9)
    resumed.resume()
    kept = mf.load_checkpoint(tmp_path / LAST).scaler
    assert state(resumed.scaler) == (kept["scale"], kept["good_steps"]) != (START, 0)
    assert resumed.fit()
    assert_same(
        {**arrays(resumed.model, resumed.optimizer), **resumed.scaler.state_dict()},
        {**arrays(straight.model, straight.optimizer), **straight.scaler.state_dict()},
    )


def test_a_resumed_run_that_forgot_its_scale_would_be_seen(tmp_path, monkeypatch):
    """The comparison itself."""
    straight = make_trainer()
    straight.fit()
    make_trainer(tmp_path, StopAfter(2)).fit()
    resumed = make_trainer(tmp_path)
    monkeypatch.setattr(LossScaler, "load_state_dict", lambda scaler, state: None)
    resumed.resume()
    resumed.fit()
    assert not np.array_equal(resumed.model.head.weight.data, straight.model.head.weight.data)


def test_a_checkpoint_from_before_scaling_is_read_and_the_scale_starts_anew(tmp_path):
    make_trainer(tmp_path, StopAfter(2), float16=False).fit()
    assert mf.load_checkpoint(tmp_path / LAST).scaler == {}
    trainer = make_trainer(tmp_path, seed=9)
    trainer.resume()
    assert state(trainer.scaler) == (START, 0)
    assert trainer.optimizer.steps == 2


def test_a_scale_that_is_none_is_refused_before_anything_changes(tmp_path):
    model = network()
    scaler = LossScaler(model)
    scaler.scale = np.ones(2, "float32")
    mf.save_checkpoint(tmp_path / LAST, model, None, scaler)
    other = network(seed=4)
    before = copies(other, SGD(other, 0.1))
    with pytest.raises(InputError, match=rf"{LAST}: this is not the state of a LossScaler"):
        mf.load_checkpoint(tmp_path / LAST).restore(other, scaler=LossScaler(other))
    assert_same(copies(other, SGD(other, 0.1)), before)

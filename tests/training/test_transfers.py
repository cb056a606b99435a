"""What crosses between host and device in training: batches go up, and of the results little comes down."""

import os
import signal

import numpy as np
import pytest
from strict_array import StrictLibrary

import minifocal as mf
from minifocal.arrays import as_floats, as_numpy, beside, random_generator
from minifocal.data import Dataset, Standardize
from minifocal.models.config import FocalNetConfig
from minifocal.models.focalnet import FocalNet
from minifocal.training import trainer as module
from minifocal.training.loss_scale import LossScaler
from minifocal.training.optim import SGD, AdamW
from minifocal.training.step import evaluate, fetch_records, load_batch, train_step
from minifocal.training.train_config import TrainConfig
from minifocal.training.trainer import FETCH_EVERY, LAST, Listener, Trainer, TrainingError

B, CLASSES = 4, 3
DRAWS = [(B,)] * 4  # rates are 0, 0.3 and 0.6: two blocks draw for two branches each
BATCH = [(B, 2, 8, 6), (B,)]
CLOCK = ("seconds", "images_per_second")


def data(count, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 2, 8, 6)).astype(np.uint8)
    return Dataset(images, rng.integers(0, CLASSES, count), tuple("abc"[:CLASSES]))


def network(library=None, seed=1):
    """A network of two stages and three blocks; on the library's device where one is given."""
    config = FocalNetConfig(
        image_size=8, patch_size=2, in_chans=2, num_classes=CLASSES, embed_dim=4, depths=(2, 1), mlp_ratio=2.0,
        focal_levels=(2, 1), focal_windows=(3, 3), drop_path_rate=0.6,
    )  # fmt: skip
    model = FocalNet(config, seed=seed, init="lecun", dtype="float32", ops="reference")
    if library is not None:
        for parameter in model.parameters():
            parameter.data, parameter.grad = library.asarray(parameter.data), library.asarray(parameter.grad)
    return model


def make_trainer(library, steps, folder=None, listener=None, seed=1, **changes):
    train, validation = data(B * steps), data(7, seed=1)
    config = TrainConfig(**({"epochs": 1, "batch_size": B, "lr": 0.05, "warmup_steps": 2} | changes))
    return Trainer(
        network(library, seed), train, validation, Standardize.fit(train), config, folder=folder, listener=listener
    )


def transfers(trainer, library):
    """What goes up and what comes down while a trainer trains."""
    library.to_device.clear()
    library.to_host.clear()
    trainer.fit()
    return library.to_device, library.to_host


def without_clock(history):
    return [{name: value for name, value in record.items() if name not in CLOCK} for record in history]


class Remember(Listener):
    def __init__(self):
        self.steps = []

    def on_step(self, step, total, record, images):
        self.steps.append((step, total, record.loss, record.accuracy, images))


VALIDATION_UP, VALIDATION_DOWN = [(7, 2, 8, 6), (7,)], [(1,), (7,)]


def assert_nothing_else_crosses(trainer, library, steps):
    up, down = transfers(trainer, library)
    assert up == [*BATCH, *DRAWS] * steps + VALIDATION_UP
    assert down == [(2 * steps,), *VALIDATION_DOWN]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_ten_steps_send_batches_and_draws_and_fetch_their_records_once(optimizer):
    library = StrictLibrary()
    assert_nothing_else_crosses(make_trainer(library, 10, optimizer=optimizer), library, 10)


@pytest.mark.parametrize(
    "look",
    [
        lambda model, record: float(record.loss),
        lambda model, record: bool(record._computed[0] > 100.0),
        lambda model, record: record._computed[1].get(),
        lambda model, record: float((model.head.weight.grad * model.head.weight.grad).sum()),
    ],
    ids=["loss", "comparison", "copy", "norm"],
)
def test_a_look_in_each_step_is_caught(monkeypatch, look):
    """The count itself."""

    def looking(model, *args, **options):
        record = train_step(model, *args, **options)
        look(model, record)
        return record

    monkeypatch.setattr(module, "train_step", looking)
    library = StrictLibrary()
    with pytest.raises(AssertionError):
        assert_nothing_else_crosses(make_trainer(library, 10), library, 10)
    assert len(library.to_host) >= 10


def test_records_come_down_every_few_steps_and_are_those_of_the_host():
    library, steps = StrictLibrary(), 2 * FETCH_EVERY + 5
    listeners = [Remember(), Remember()]
    device, host = (
        make_trainer(home, steps, listener=listener, epochs=2)
        for home, listener in zip((library, None), listeners, strict=True)
    )
    _, down = transfers(device, library)
    epoch = [(2 * FETCH_EVERY,), (2 * FETCH_EVERY,), (2 * 5,), *VALIDATION_DOWN]
    assert down == epoch * 2
    host.fit()
    assert listeners[0].steps == listeners[1].steps
    assert [step for step, *_ in listeners[0].steps] == list(range(1, 2 * steps + 1))
    assert without_clock(device.history) == without_clock(host.history)
    for name, array in device.model.state_dict().items():
        np.testing.assert_array_equal(array.get(), host.model.state_dict()[name])


def test_on_the_host_every_step_is_looked_at_at_once():
    seen = []

    class Watch(Listener):
        def on_step(self, step, total, record, images):
            seen.append((step, trainer.optimizer.steps))

    trainer = make_trainer(None, 5, listener=Watch())
    trainer.fit()
    assert seen == [(step, step) for step in range(1, 6)]


def test_a_run_stopped_on_a_device_is_settled_saved_and_resumed_to_the_same_bits(tmp_path):
    """Nobody looks before step 16; the wish to stop comes from outside, between two looks."""

    class Stop(Remember):
        def on_step(self, *of_step):
            super().on_step(*of_step)
            if len(self.steps) == 3:
                os.kill(os.getpid(), signal.SIGINT)

    library, steps = StrictLibrary(), FETCH_EVERY + 9
    straight, listener = make_trainer(None, steps, epochs=2), Stop()
    straight.fit()
    stopped = make_trainer(library, steps, tmp_path, listener, epochs=2)
    library.to_host.clear()
    assert not stopped.fit()
    assert [step for step, *_ in listener.steps] == list(range(1, FETCH_EVERY + 1))
    saved = 2 * len(list(stopped.model.parameters()))  # with the velocities
    weights = (len(list(stopped.model.parameters())),)
    assert len(library.to_host) == saved + 2 + saved
    assert library.to_host[saved : saved + 2] == [(2 * FETCH_EVERY,), weights]
    resumed = make_trainer(library, steps, tmp_path, seed=5, epochs=2)
    resumed.resume()
    assert resumed.fit()
    assert without_clock(resumed.history) == without_clock(straight.history)
    for name, array in resumed.model.state_dict().items():
        np.testing.assert_array_equal(as_numpy(array), straight.model.state_dict()[name])


def test_a_stop_between_two_looks_leaves_no_step_untold(tmp_path, monkeypatch):
    library, listener = StrictLibrary(), Remember()
    trainer = make_trainer(library, 9, tmp_path, listener)
    calls = []

    def stopping(*args, **options):
        calls.append(1)
        trainer._stop = len(calls) == 5
        return train_step(*args, **options)

    monkeypatch.setattr(module, "train_step", stopping)
    assert not trainer.fit()
    assert [step for step, *_ in listener.steps] == [1, 2, 3, 4, 5]
    progress = mf.load_checkpoint(tmp_path / LAST).meta["progress"]
    assert (progress["step"], progress["loss_sum"]) == (5, sum(loss * B for _, _, loss, _, _ in listener.steps))


def test_a_loss_that_is_not_finite_on_a_device_ends_the_run_before_anything_is_saved(tmp_path, monkeypatch):
    library, listener = StrictLibrary(), Remember()
    trainer = make_trainer(library, 9, tmp_path, listener)
    start = trainer.model.head.weight.data.get()
    calls = []

    def breaking(model, *args, **options):
        calls.append(1)
        if len(calls) == 4:
            model.head.bias.data[0] = float("nan")
        return train_step(model, *args, **options)

    monkeypatch.setattr(module, "train_step", breaking)
    with pytest.raises(TrainingError, match="the loss is nan in epoch 1"):
        trainer.fit()
    assert [step for step, *_ in listener.steps] == [1, 2, 3]
    np.testing.assert_array_equal(mf.load_checkpoint(tmp_path / LAST).model["head.weight"], start)


# The parts


@pytest.mark.parametrize("make", [SGD, AdamW])
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
def test_a_step_waits_for_nothing_until_its_record_is_looked_at(make, scaled):
    library, dataset = StrictLibrary(), data(B)
    model = network(library)
    optimizer, scaler = make(model, 0.05), LossScaler(model) if scaled else None
    batch = load_batch(model, dataset, Standardize.fit(dataset), dataset.images, dataset.labels)
    library.to_device.clear()
    options = {"label_smoothing": 0.1, "clip_norm": 0.5, "scaler": scaler}
    records = [train_step(model, optimizer, *batch, random_generator(3), **options) for _ in range(3)]
    assert (library.to_device, library.to_host) == (DRAWS * 3, [])
    assert records[0].loss > 0.0
    assert 0.0 <= records[0].accuracy <= 1.0
    assert library.to_host == [(2,)]
    fetch_records(records)
    assert library.to_host == [(2,), (4,)]
    assert str(records[1]) == f"StepRecord(loss={records[1].loss}, accuracy={records[1].accuracy})"
    fetch_records(records)
    assert records[0] != records[1]
    assert library.to_host == [(2,), (4,)]


def test_evaluation_fetches_once_whatever_the_number_of_batches():
    library, dataset = StrictLibrary(), data(11)
    standardize = Standardize.fit(dataset)
    model, host = network(library), network()
    library.to_device.clear()
    result = evaluate(model, dataset, standardize, batch_size=4)
    assert library.to_device == [(4, 2, 8, 6), (4,)] * 2 + [(3, 2, 8, 6), (3,)]
    assert library.to_host == [(3,), (11,)]
    assert result == evaluate(host, dataset, standardize, batch_size=4)


def test_arrays_go_beside_others_as_they_are():
    library = StrictLibrary()
    there = library.ones((2, 3), dtype="float32")
    for values in (np.arange(4), np.ones((2, 1)), np.array(3, "int32")):
        moved = beside(values, there)
        assert (moved.library, moved.dtype, moved.shape) == (library, values.dtype, values.shape)
        assert beside(values, np.ones(1)) is values
    assert library.to_device == [(4,), (2, 1), ()]


def test_scalars_of_several_types_become_numbers_in_one_transfer():
    library = StrictLibrary()
    values = [np.float32(0.1), np.float64(0.1), np.int64(7), np.float32("nan")]
    assert as_floats([]) == []
    for scalars in (values, [library.asarray(value) for value in values]):
        got = as_floats(scalars)
        assert got[:3] == [float(np.float32(0.1)), 0.1, 7.0]
        assert np.isnan(got[3])
    assert library.to_host == [(4,)]

"""Runs: they learn, they stop and resume without a trace, and they say so when they do not learn."""

import dataclasses
import json
import math
import os
import signal
import threading

import numpy as np
import pytest

import minifocal as mf
from minifocal.data import Dataset, Standardize, digits_splits
from minifocal.errors import InputError
from minifocal.models.config import MODULATION_NAMES
from minifocal.training.augment import Augmentation
from minifocal.training.progress import Progress
from minifocal.training.run_folder import LAST
from minifocal.training.train_config import TrainConfig
from minifocal.training.trainer import Listener, Trainer, TrainingError, evaluate, train_step

CLOCK = ("seconds", "images_per_second")


def data(count=26, seed=0):
    """Grey 4 x 4 images whose brighter half tells the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    images = rng.integers(0, 100, (count, 1, 4, 4))
    images[np.arange(count), 0, :, :] += 120 * (np.arange(4) // 2 == labels[:, None])[:, None, :]
    return Dataset(images.astype(np.uint8), labels, ("left", "right"))


def network(seed=0, **options):
    return mf.FocalNet.build(
        image_size=4, patch_size=2, in_channels=1, hidden_size=6, num_layers=2, focal_levels=1, num_classes=2,
        init="lecun", drop_path_rate=0.3, seed=seed, **options,
    )  # fmt: skip


def make_trainer(folder=None, listener=None, model=None, **changes):
    settings = {"epochs": 4, "batch_size": 8, "lr": 0.05, "warmup_steps": 2, "augmentation": Augmentation(shift=1)}
    train, validation = data(), data(10, seed=1)
    return Trainer(
        model or network(), train, validation, Standardize.fit(train), TrainConfig(**{**settings, **changes}),
        folder=folder, listener=listener,
    )  # fmt: skip


def without_clock(history):
    return [{name: value for name, value in record.items() if name not in CLOCK} for record in history]


class StopAfter(Listener):
    """Presses Ctrl-C in the step with this number."""

    def __init__(self, step):
        self.step = step

    def on_step(self, step, total, record, images):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


class Remember(Listener):
    def __init__(self):
        self.messages, self.steps = [], []

    def on_step(self, step, total, record, images):
        self.steps.append((step, total, images))

    def on_message(self, message):
        self.messages.append(message)


@pytest.mark.parametrize("modulation", MODULATION_NAMES)
def test_eight_digits_are_overfitted_by_each_modulation(modulation):
    digits = digits_splits().train.subset(np.arange(8) * 17)
    model = mf.FocalNet.build(
        image_size=8, patch_size=2, in_channels=1, hidden_size=16, num_layers=2, focal_levels=2, num_classes=10,
        modulation=modulation, init="lecun",
    )  # fmt: skip
    images = Standardize.fit(digits)(digits.images, digits.max_value, "float32")
    optimizer = mf.SGD(model, 0.1)
    for _ in range(60):
        record = train_step(model, optimizer, images, digits.labels, None, clip_norm=5.0)
    assert record.accuracy == 1.0
    assert record.loss < 0.05


@pytest.mark.parametrize("stop_at", [1, 3, 4, 9, 15])
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bits(tmp_path, stop_at):
    straight = make_trainer(tmp_path / "straight")
    assert straight.fit()
    stopped = make_trainer(tmp_path / "stopped", StopAfter(stop_at))
    assert not stopped.fit()
    resumed = make_trainer(tmp_path / "stopped", model=network(seed=99))
    resumed.resume()
    assert resumed.fit()
    for name, array in straight.model.state_dict().items():
        assert np.array_equal(array, resumed.model.state_dict()[name]), name
    for name, array in straight.optimizer.state_dict().items():
        assert np.array_equal(array, resumed.optimizer.state_dict()[name]), name
    assert without_clock(resumed.history) == without_clock(straight.history)
    for file in ("last.safetensors", "best.safetensors"):
        one, two = (mf.load_checkpoint(tmp_path / run / file) for run in ("straight", "stopped"))
        assert all(np.array_equal(one.model[name], two.model[name]) for name in one.model)


def test_the_same_seed_gives_the_same_metrics_and_another_seed_others(tmp_path):
    runs = {name: make_trainer(tmp_path / name, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))}
    lines = {}
    for name, run in runs.items():
        run.fit()
        text = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        lines[name] = without_clock([json.loads(line) for line in text])
    assert lines["a"] == lines["b"] == without_clock(runs["a"].history)
    assert lines["a"] != lines["c"]
    assert [record["epoch"] for record in lines["a"]] == [1, 2, 3, 4]


def test_there_is_a_checkpoint_before_the_first_step(tmp_path):
    trainer = make_trainer(tmp_path, StopAfter(1))
    start = {name: array.copy() for name, array in trainer.model.state_dict().items()}
    trainer._save()
    assert all(np.array_equal(mf.load_checkpoint(tmp_path / LAST).model[name], start[name]) for name in start)


def test_the_best_checkpoint_is_the_one_of_the_best_validation_accuracy(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.fit()
    best = max(record["val_accuracy"] for record in trainer.history)
    model = mf.FocalNet.from_checkpoint(mf.load_checkpoint(tmp_path / "best.safetensors"))
    assert evaluate(model, trainer.validation, trainer.standardize).accuracy == best


def test_of_equal_accuracies_the_smaller_loss_is_the_best(tmp_path):
    trainer = make_trainer(tmp_path, epochs=12, lr=0.2)
    trainer.fit()
    top = max(record["val_accuracy"] for record in trainer.history)
    equal = [record for record in trainer.history if record["val_accuracy"] == top]
    assert len(equal) > 1
    best = mf.load_checkpoint(tmp_path / "best.safetensors").meta["progress"]["history"][-1]
    assert best["val_loss"] == min(record["val_loss"] for record in equal)


def test_every_image_is_seen_once_an_epoch_the_short_last_batch_too():
    listener = Remember()
    make_trainer(listener=listener).fit()
    assert listener.steps[:4] == [(1, 16, 8), (2, 16, 8), (3, 16, 8), (4, 16, 2)]
    assert len(listener.steps) == 16


def test_a_second_interrupt_is_left_to_python(tmp_path):
    class Twice(Listener):
        def on_step(self, step, total, record, images):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, Twice()).fit()
    assert signal.getsignal(signal.SIGINT) is before
    assert mf.load_checkpoint(tmp_path / LAST).meta["progress"]["epoch"] == 0


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint_before(tmp_path):
    listener = Remember()
    trainer = make_trainer(tmp_path, listener)
    trainer.model.head.weight.data[0, 0] = math.inf
    saved = []
    trainer._save = lambda name=LAST: saved.append(name)
    with np.errstate(invalid="ignore"), pytest.raises(TrainingError, match="loss is nan in epoch 1; try a smaller"):
        trainer.fit()
    assert saved == [LAST]  # the one before the first step
    assert listener.steps == []  # and no step was taken for a good one


def test_a_loss_that_stays_at_chance_is_told_once_with_what_to_try():
    listener = Remember()
    make_trainer(listener=listener, lr=0.0, epochs=5).fit()
    (message,) = listener.messages
    assert "after 3 epochs the network still guesses" in message
    assert "overfit 8 images first" in message


def test_a_loss_that_falls_is_not_told():
    listener = Remember()
    trainer = make_trainer(listener=listener, epochs=8, lr=0.2)
    trainer.fit()
    assert trainer.history[2]["val_accuracy"] > 0.75
    assert listener.messages == []


def test_train_step_updates_by_the_gradient_of_this_batch_alone():
    images = np.random.default_rng(0).standard_normal((3, 1, 4, 4))
    labels = np.array([0, 1, 1])
    once, twice = network(dtype="float64"), network(dtype="float64")
    for parameter in twice.parameters():
        parameter.grad += 100.0  # left over from something else
    records = [train_step(model, mf.SGD(model, 0.1), images, labels, None) for model in (once, twice)]
    assert records[0] == records[1]
    assert np.array_equal(once.head.weight.data, twice.head.weight.data)


def test_evaluate_counts_by_hand():
    model, dataset = network(seed=5), data(11, seed=2)
    standardize = Standardize.fit(dataset)
    result = evaluate(model, dataset, standardize, batch_size=4)
    logits = model(standardize(dataset.images, dataset.max_value, "float32")).astype("float64")
    chosen = logits.argmax(axis=1)
    losses = [
        math.log(sum(math.exp(v) for v in row)) - row[label] for row, label in zip(logits, dataset.labels, strict=True)
    ]
    assert result.accuracy == sum(c == label for c, label in zip(chosen, dataset.labels, strict=True)) / 11
    assert result.loss == pytest.approx(sum(losses) / 11, rel=1e-5)
    for label in range(2):
        for prediction in range(2):
            pairs = [(a, b) for a, b in zip(dataset.labels, chosen, strict=True) if (a, b) == (label, prediction)]
            assert result.confusion[label][prediction] == len(pairs)


def test_a_run_of_another_network_cannot_be_resumed(tmp_path):
    make_trainer(tmp_path, StopAfter(2)).fit()
    other = make_trainer(tmp_path, model=network(modulation="focal"))
    with pytest.raises(InputError, match=r"differs in network .*modulation"):
        other.resume()


def test_a_checkpoint_without_a_run_cannot_be_resumed(tmp_path):
    trainer = make_trainer(tmp_path)
    mf.save_checkpoint(tmp_path / LAST, trainer.model, trainer.optimizer)
    with pytest.raises(InputError, match="holds no run to resume"):
        trainer.resume()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 27}, "batch larger than the data"),
        ({"epochs": 0}, "epochs must be an integer of at least 1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"optimizer": "adam"}, "optimizer must be one of sgd, adamw"),
        ({"label_smoothing": 1.0}, "label_smoothing must lie in"),
    ],
)
def test_settings_that_cannot_train_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make_trainer(**changes)


def test_a_run_of_other_data_cannot_be_resumed(tmp_path):
    make_trainer(tmp_path, StopAfter(2)).fit()
    other = make_trainer(tmp_path)
    other.train = data(31)
    with pytest.raises(InputError, match=r"a run that differs in images \(26, here 31\)"):
        other.resume()


def test_a_network_that_diverged_in_the_last_step_of_an_epoch_is_not_saved(tmp_path):
    trainer = make_trainer(tmp_path, epochs=1, batch_size=26, warmup_steps=0, lr=1e39, clip_norm=0.0)
    start = trainer.model.head.weight.data.copy()
    with pytest.raises(TrainingError, match="try a smaller learning rate"):
        trainer.fit()
    assert not (tmp_path / "best.safetensors").exists()
    assert np.array_equal(mf.load_checkpoint(tmp_path / LAST).model["head.weight"], start)


def test_weights_that_are_not_finite_are_not_saved_when_a_run_is_stopped(tmp_path):
    class Break(Listener):
        def on_step(self, step, total, record, images):
            trainer.model.head.bias.data[0] = math.nan
            os.kill(os.getpid(), signal.SIGINT)

    trainer = make_trainer(tmp_path, Break())
    with pytest.raises(TrainingError, match="a weight is nan in epoch 1"):
        trainer.fit()
    assert np.isfinite(mf.load_checkpoint(tmp_path / LAST).model["head.bias"]).all()


def test_each_step_has_the_rate_of_the_schedule_and_an_epoch_the_mean_over_its_images():
    class Watch(Listener):
        rates, losses, right = [], [], []

        def on_step(self, step, total, record, images):
            self.rates.append(trainer.optimizer.lr)
            self.losses.append(record.loss * images)
            self.right.append(record.accuracy * images)

    trainer = make_trainer(listener=Watch())
    trainer.fit()
    assert Watch.rates == [trainer.schedule(step) for step in range(16)]
    for epoch, record in enumerate(trainer.history):
        steps = slice(4 * epoch, 4 * epoch + 4)
        assert record["train_loss"] == pytest.approx(sum(Watch.losses[steps]) / 26, rel=1e-12)
        assert record["train_accuracy"] == pytest.approx(sum(Watch.right[steps]) / 26, rel=1e-6)


def test_a_stopped_trainer_goes_on_when_it_is_asked_again():
    trainer = make_trainer(listener=StopAfter(3))
    assert not trainer.fit()
    assert trainer.fit()
    straight = make_trainer()
    straight.fit()
    assert np.array_equal(trainer.model.head.weight.data, straight.model.head.weight.data)


def test_a_listener_hears_the_end_of_a_run_that_failed(tmp_path):
    class Ends(Remember):
        ended = False

        def on_end(self):
            self.ended = True

    listener = Ends()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        make_trainer(tmp_path / "file" / "run", listener).fit()
    assert listener.ended


def test_evaluating_a_model_of_other_classes_is_refused():
    dataset = data()
    more = Dataset(dataset.images, dataset.labels, ("left", "right", "up"))
    with pytest.raises(InputError, match="the model has 2 classes, but the data has 3"):
        evaluate(network(), more, Standardize.fit(more))


def test_an_unwritable_folder_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    listener = Remember()
    with pytest.raises(InputError, match="cannot write"):
        make_trainer(tmp_path / "file" / "run", listener).fit()
    assert listener.steps == []


def test_a_configuration_comes_back_from_its_dictionary():
    config = TrainConfig(epochs=3, optimizer="adamw", augmentation=Augmentation(crop=(4, 6), shift=2, flip=True))
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_in_another_thread_signals_are_left_alone():
    """Python would refuse: whoever runs the main thread sees to them."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    ended = []
    run = threading.Thread(target=lambda: ended.append(make_trainer(epochs=1).fit()))
    run.start()
    run.join()
    assert ended == [True]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 2}, "expected a record of every epoch"),
        ({"epoch": True}, "counts must be whole numbers"),
        ({"loss_sum": "0"}, "sums must be numbers"),
        ({"history": [{"epoch": 1}]}, "epoch 1 has a record of another kind"),
    ],
    ids=str,
)
def test_progress_that_is_none_is_refused_and_the_generator_stays(changes, message, tmp_path):
    trainer = make_trainer(tmp_path, epochs=1)
    trainer.fit()
    values = mf.load_checkpoint(tmp_path / LAST).meta["progress"]
    rng = np.random.default_rng(5)
    stood = rng.bit_generator.state
    with pytest.raises(ValueError, match=message):
        Progress.read({**values, **changes}, rng)
    assert rng.bit_generator.state == stood
    assert Progress.read(values, rng).epoch == 1
    assert rng.bit_generator.state == values["rng_state"]


def test_a_run_goes_on_only_with_the_network_that_it_began_with(tmp_path):
    """Weights of the same shapes would fit."""
    make_trainer(tmp_path, epochs=1).fit()
    other = network()
    other.config = dataclasses.replace(other.config, drop_path_rate=0.5)
    expected = (
        r'differs in network \(\{"config": \{"drop_path_rate": 0\.3\}\}, here '
        r'\{"config": \{"drop_path_rate": 0\.5\}\}\); start a new run'
    )
    with pytest.raises(InputError, match=expected):
        make_trainer(tmp_path, model=other, epochs=1).resume()
    assert make_trainer(tmp_path, epochs=1).resume() is None


def test_signals_that_are_ignored_stay_so(tmp_path):
    """As Ctrl-C is in a script's background: it is meant for what stands in the foreground."""

    class Asks(Listener):
        def on_step(self, step, total, record, images):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        trainer = make_trainer(tmp_path, Asks(), epochs=1)
        assert trainer.fit()
        assert trainer.stopped_by is None
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)

"""Steps that a GPU replays are the steps of train_step, bit for bit."""

import numpy as np
import pytest

from minifocal.arrays import random_generator
from minifocal.data.dataset import Dataset, Standardize
from minifocal.errors import InputError
from minifocal.models.config import FocalNetConfig
from minifocal.models.focalnet import FocalNet
from minifocal.ops import GPU_TABLE, get_ops
from minifocal.training import graphs
from minifocal.training.graphs import StepGraph
from minifocal.training.loss_scale import LossScaler
from minifocal.training.optim import SGD
from minifocal.training.step import train_step
from minifocal.training.train_config import TrainConfig
from minifocal.training.trainer import Trainer

CONFIG = FocalNetConfig(
    image_size=(12, 8), patch_size=2, in_chans=2, num_classes=3, embed_dim=8, depths=(1, 2), focal_levels=(2, 1),
    focal_windows=(3, 3), drop_path_rate=0.4, drop_rate=0.1,
)  # fmt: skip
SIZES = (5, 5, 5, 3, 5, 3, 3, 5)  # images of each step: as where the last batch of an epoch is smaller


def build(home, precision="float32"):
    model = FocalNet(CONFIG, seed=1, init="lecun", ops="reference")
    for parameter in model.parameters():
        parameter.data, parameter.grad = home.put((parameter.data, parameter.grad))
    model.use_ops(get_ops(GPU_TABLE, "cuda", precision))
    return model


def batches(home):
    data = np.random.default_rng(3)
    for size in SIZES:
        yield home.put((data.standard_normal((size, 2, 12, 8)).astype("float32"), data.integers(0, 3, size)))


def train(home, graphed, *, draws=True, clip_norm=0.5, scaled=False):
    """Give what each step came to, and the parameters at the end; the learning rate changes from step to step."""
    model = build(home, "float16" if scaled else "float32")
    optimizer, rng = SGD(model, 0.05), random_generator(2) if draws else None
    scaler = LossScaler(model) if scaled else None
    if scaler is not None:
        scaler.scale[...] = home.put(np.array(2.0**24, "float32"))  # so large that the first steps are skipped
    options = {"label_smoothing": 0.1, "clip_norm": clip_norm, "scaler": scaler}
    step = StepGraph(model, optimizer, **options) if graphed else None
    records = []
    for number, (images, labels) in enumerate(batches(home)):
        optimizer.lr = 0.05 / (number + 1)
        if step is None:
            records.append(train_step(model, optimizer, images, labels, rng, **options))
        else:
            records.append(step(images, labels, rng))
    state = {} if scaler is None else scaler.state_dict()
    arrays = {name: home.get(array) for name, array in (model.state_dict() | state).items()}
    return [(record.loss, record.accuracy) for record in records], arrays  # looked at late, as a trainer does


def assert_same(one, other):
    assert one[0] == other[0]
    for name, array in other[1].items():
        np.testing.assert_array_equal(one[1][name], array, err_msg=name)


@pytest.mark.parametrize("options", [{}, {"draws": False}, {"clip_norm": None}, {"scaled": True}], ids=str)
def test_replayed_steps_are_the_steps(options, home):
    assert_same(train(home, True, **options), train(home, False, **options))


def test_a_trainer_replays_its_steps(home):
    """Epochs whose last batch is smaller: metrics and weights are the same bits."""
    rng = np.random.default_rng(4)
    images, labels = rng.integers(0, 256, (11, 2, 12, 8)).astype("uint8"), rng.integers(0, 3, 11)
    train, validation = (Dataset(images[part], labels[part], ("a", "b", "c")) for part in (slice(8), slice(8, 11)))
    config = TrainConfig(epochs=3, batch_size=5, lr=0.05, warmup_steps=2)
    runs = []
    for graph in (False, True):
        trainer = Trainer(build(home), train, validation, Standardize.fit(train), config, graph=graph)
        trainer.fit()
        history = [
            {name: record[name] for name in ("train_loss", "train_accuracy", "val_loss")} for record in trainer.history
        ]
        runs.append((history, {name: home.get(array) for name, array in trainer.model.state_dict().items()}))
    assert_same(*runs)


def test_a_replayed_run_that_was_stopped_ends_with_the_same_bits(host_compiled, monkeypatch, tmp_path):
    """Stopped in its second epoch: what is recorded anew after that makes no difference."""
    host_compiled.take_the_place_of_cupy(monkeypatch)
    rng = np.random.default_rng(4)
    images, labels = rng.integers(0, 256, (19, 2, 12, 8)).astype("uint8"), rng.integers(0, 3, 19)
    train, validation = (Dataset(images[p], labels[p], ("a", "b", "c")) for p in (slice(16), slice(16, 19)))
    config = TrainConfig(epochs=3, batch_size=5, lr=0.05, warmup_steps=2)

    def make(folder):
        return Trainer(
            build(host_compiled),
            train,
            validation,
            Standardize.fit(train),
            config,
            folder=tmp_path / folder,
            graph=True,
        )

    whole, stopped, resumed = make("whole"), make("stopped"), make("stopped")
    assert whole.fit()
    step, steps = stopped._step, []

    def stopping(batch):
        step(batch)
        steps.append(1)
        stopped._stop = len(steps) == 6  # as Ctrl-C does

    stopped._step = stopping
    assert not stopped.fit()
    resumed.resume()
    assert resumed.fit()
    assert [r["train_loss"] for r in whole.history] == [r["train_loss"] for r in resumed.history]
    for name, array in whole.model.state_dict().items():
        np.testing.assert_array_equal(host_compiled.get(resumed.model.state_dict()[name]), host_compiled.get(array))


def test_steps_whose_draws_stay_the_same_are_others(home, monkeypatch):
    """The comparison sees what is not brought to its place before a replay."""
    want = train(home, False)
    monkeypatch.setattr(graphs, "beside", lambda drawn, array: array)
    with pytest.raises(AssertionError):
        assert_same(train(home, True), want)


def test_a_replay_takes_the_draws_in_one_transfer_and_sends_nothing(host_compiled, monkeypatch):
    host_compiled.take_the_place_of_cupy(monkeypatch)
    library = host_compiled.library
    model = build(host_compiled)
    step, rng = StepGraph(model, SGD(model, 0.05)), random_generator(2)
    (images, labels), *_ = batches(host_compiled)
    for _ in range(2):
        step(images, labels, rng)
    library.to_device.clear()
    library.to_host.clear()
    step(images, labels, rng)
    # Blocks of rates 0, 0.2 and 0.4, two branches each, a draw for each image; dropout draws for every value.
    branches, dropouts = 4, (6 * 4 * 8 * 1 + 6 * 4 * (8 + 32 + 8)) + 2 * 3 * 2 * (16 + 64 + 16)
    assert library.to_device == [(5 * (branches + dropouts),)]
    assert library.to_host == []


def test_batches_that_were_given_stay_as_they_were(home):
    model = build(home)
    step = StepGraph(model, SGD(model, 0.05))
    given = [batch for batch in batches(home) if len(batch[1]) == 5]
    before = [tuple(array.copy() for array in home.get(batch)) for batch in given]
    for images, labels in given:
        step(images, labels, None)
    for batch, kept in zip(given, before, strict=True):
        for array, copy in zip(home.get(batch), kept, strict=True):
            np.testing.assert_array_equal(array, copy)


def test_a_model_on_the_cpu_is_refused():
    model = FocalNet(CONFIG, init="zeros")
    with pytest.raises(
        InputError, match=r'^a graph records the work of a GPU, but the model is on the CPU; use device "cuda"'
    ):
        StepGraph(model, SGD(model, 0.1))


def test_another_table_is_refused(home):
    model = build(home)
    model.use_ops(get_ops("reference"))
    with pytest.raises(InputError, match=r'^a graph records the table "cuda", not "reference"; use ops "auto"$'):
        StepGraph(model, SGD(model, 0.1))


def test_a_model_whose_arrays_were_replaced_is_refused(home):
    model = build(home)
    step = StepGraph(model, SGD(model, 0.05))
    (images, labels), *_ = batches(home)
    for _ in range(2):
        step(images, labels, None)
    model.head.bias.data = model.head.bias.data.copy()
    with pytest.raises(InputError, match="make a new StepGraph"):
        step(images, labels, None)

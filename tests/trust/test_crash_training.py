"""Runs that lose their last checkpoint, or are interrupted while they save: they go on to the same end."""

import os
import shutil
import signal

import numpy as np
import pytest

import minifocal as mf
from minifocal import files
from minifocal.data import Dataset, Standardize
from minifocal.errors import InputError
from minifocal.training.augment import Augmentation
from minifocal.training.checkpoint import DamagedCheckpointError
from minifocal.training.listener import Listener
from minifocal.training.run_folder import BEST, LAST, PREVIOUS
from minifocal.training.train_config import TrainConfig
from minifocal.training.trainer import Trainer

CLOCK = ("seconds", "images_per_second")
EPOCHS = 3


def data(count, seed):
    """Grey 4 x 4 images whose brighter half tells the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    images = rng.integers(0, 100, (count, 1, 4, 4))
    images[np.arange(count), 0, :, :] += 120 * (np.arange(4) // 2 == labels[:, None])[:, None, :]
    return Dataset(images.astype(np.uint8), labels, ("left", "right"))


def make_trainer(folder=None, listener=None, seed=0):
    model = mf.FocalNet.build(
        image_size=4, patch_size=2, in_channels=1, hidden_size=6, num_layers=2, focal_levels=1, num_classes=2,
        init="lecun", drop_path_rate=0.3, seed=seed,
    )  # fmt: skip
    train, validation = data(17, seed=0), data(10, seed=1)
    config = TrainConfig(epochs=EPOCHS, batch_size=9, warmup_steps=2, augmentation=Augmentation(shift=1))
    return Trainer(model, train, validation, Standardize.fit(train), config, folder=folder, listener=listener)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("straight")
    assert make_trainer(folder).fit()
    return folder


def copy_of(folder, to):
    shutil.copytree(folder, to)
    return to


def without_clock(history):
    return [{name: value for name, value in record.items() if name not in CLOCK} for record in history]


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def epochs_of(path):
    return mf.load_checkpoint(path).meta["progress"]["epoch"]


def assert_same_end(one, two):
    for name in (LAST, BEST):
        a, b = (mf.load_checkpoint(folder / name) for folder in (one, two))
        assert all(np.array_equal(a.model[key], b.model[key]) for key in a.model)
        assert all(np.array_equal(a.optimizer[key], b.optimizer[key]) for key in a.optimizer)
        histories = [without_clock(checkpoint.meta["progress"]["history"]) for checkpoint in (a, b)]
        assert histories[0] == histories[1]


def test_the_checkpoint_before_the_last_is_kept(straight):
    assert (epochs_of(straight / PREVIOUS), epochs_of(straight / LAST)) == (EPOCHS - 1, EPOCHS)


@pytest.mark.parametrize("lost", [[LAST], [LAST, PREVIOUS]], ids=["last", "last and previous"])
@pytest.mark.parametrize("how", [damage, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_a_run_whose_last_checkpoint_is_lost_goes_on_from_one_before_to_the_same_end(straight, tmp_path, lost, how):
    hurt = copy_of(straight, tmp_path / "hurt")
    for name in lost:
        how(hurt / name)
    resumed = make_trainer(hurt, seed=99)
    message = resumed.resume()
    source = PREVIOUS if lost == [LAST] else BEST
    assert message.endswith(f"; going on from {source}, which is whole")
    assert LAST in message
    assert "\n" not in message
    assert resumed.progress.epoch == (EPOCHS - 1 if source == PREVIOUS else epochs_of(straight / BEST))
    mf.load_checkpoint(hurt / LAST)  # the damaged one cannot become the previous one
    assert resumed.fit()
    assert_same_end(straight, hurt)
    assert make_trainer(hurt).resume() is None


def test_a_run_without_any_whole_checkpoint_says_so(straight, tmp_path):
    hurt = copy_of(straight, tmp_path / "hurt")
    for name in (LAST, PREVIOUS, BEST):
        damage(hurt / name)
    before = {path.name: path.read_bytes() for path in hurt.iterdir()}
    with pytest.raises(DamagedCheckpointError, match=r"last\.safetensors is damaged"):
        make_trainer(hurt).resume()
    assert {path.name: path.read_bytes() for path in hurt.iterdir()} == before


def test_a_last_checkpoint_of_a_newer_version_is_not_taken_for_a_damaged_one(straight, tmp_path, monkeypatch):
    run = copy_of(straight, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("minifocal.training.checkpoint.FORMAT", "minifocal checkpoint 3")
        mf.save_checkpoint(run / LAST, make_trainer().model)
    before = (run / LAST).read_bytes()
    with pytest.raises(InputError, match="'minifocal checkpoint 3'; this version reads"):
        make_trainer(run).resume()
    assert (run / LAST).read_bytes() == before


ONCE = [(moment, [number]) for moment, number in [(6, signal.SIGINT), (7, signal.SIGTERM), (9, signal.SIGTERM)]]
TWICE = [(moment, [signal.SIGINT, signal.SIGINT]) for moment in range(4, 13)]


@pytest.mark.parametrize(("moment", "signals"), [*ONCE, *TWICE], ids=str)
def test_a_signal_in_the_middle_of_saving_loses_nothing(straight, tmp_path, monkeypatch, moment, signals):
    """At each moment at which a file or a name is brought to the disk, from the first save to the end of an epoch."""
    stopped = tmp_path / "stopped"
    trainer = make_trainer(stopped)
    calls = []

    def sync(path):
        calls.append(path)
        if len(calls) == moment:
            for number in signals:
                os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_sync", sync)
        if len(signals) == 1:
            assert not trainer.fit()
            assert trainer.stopped_by == signals[0]
        else:
            with pytest.raises(KeyboardInterrupt):
                trainer.fit()
    assert not [path for path in stopped.iterdir() if ".part" in path.name]
    resumed = make_trainer(stopped, seed=99)
    assert resumed.resume() is None
    assert resumed.fit()
    assert_same_end(straight, stopped)


def test_signals_are_as_before_once_the_run_is_over():
    seen = []

    class Look(Listener):
        def on_step(self, step, total, record, images):
            seen.append([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    make_trainer(listener=Look()).fit()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert all(during is not after for during, after in zip(seen[0], before, strict=True))

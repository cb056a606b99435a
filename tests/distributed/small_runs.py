"""Runs for several ranks: a small network, images whose last batch is short, drop path and augmentation on."""

import numpy as np

import minifocal as mf
from minifocal.data import Dataset, Standardize
from minifocal.training.augment import Augmentation
from minifocal.training.listener import Listener
from minifocal.training.ranks import ALONE
from minifocal.training.train_config import TrainConfig
from minifocal.training.trainer import Trainer

IMAGES, BATCH, EPOCHS = 101, 11, 5  # ten steps an epoch; the last batch has two images: fewer than some have ranks


def images(count, seed=0):
    """Images of 6 x 8 pixels in two channels whose brighter quarter tells the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    pixels = rng.integers(0, 120, (count, 2, 6, 8))
    for pixel, label in zip(pixels, labels.tolist(), strict=True):
        top, left = 3 * (label // 2), 4 * (label % 2)
        pixel[:, top : top + 3, left : left + 4] += 100
    return Dataset(pixels.astype(np.uint8), labels, ("a", "b", "c", "d"))


def network(modulation="focal", seed=0, **options):
    config = mf.FocalNetConfig(
        image_size=(6, 8), patch_size=1, in_chans=2, num_classes=4, embed_dim=6, depths=(2, 1), mlp_ratio=2.0,
        focal_levels=(2, 1), focal_windows=(3, 3), drop_path_rate=0.4, modulation=modulation,
    )  # fmt: skip
    return mf.FocalNet(config, seed=seed, init="lecun", **options)


class Losses(Listener):
    """Keeps the loss of every step."""

    def __init__(self):
        self.losses = []

    def on_step(self, step, total, record, images):
        self.losses.append(record.loss)


def make_trainer(model, ranks=ALONE, folder=None, images_to_train=IMAGES, **changes):
    train = images(images_to_train)
    settings = {
        "epochs": EPOCHS, "batch_size": BATCH, "lr": 0.03, "warmup_steps": 3,
        "augmentation": Augmentation(crop=(6, 6), shift=1, flip=True),
    }  # fmt: skip
    options = {name: changes.pop(name) for name in ("micro_batch", "graph") if name in changes}
    return Trainer(
        model, train, images(13, seed=1), Standardize.fit(train), TrainConfig(**{**settings, **changes}),
        folder=folder, listener=changes.pop("listener", None) or Losses(), ranks=ranks, **options,
    )  # fmt: skip


def train(ranks, **options):
    """Train; ranks but the first begin with other weights, which the first one's replace. Give the trainer."""
    settings = {name: options.pop(name) for name in ("modulation", "dtype", "ops") if name in options}
    trainer = make_trainer(network(seed=ranks.rank, **settings), ranks, **options)
    assert trainer.fit()
    return trainer

"""Small runs for the tests of the live view, whose names are hostile."""

import numpy as np

import minifocal as mf
from minifocal.data import Dataset, Standardize
from minifocal.models.config import FocalNetConfig
from minifocal.training.augment import Augmentation
from minifocal.training.train_config import TrainConfig
from minifocal.training.trainer import Trainer

SCRIPT = "<script>document.title = 'broken'</script>"
NAMES = (SCRIPT, "right & left", '"><img src=x onerror=alert(1)>')


def data(count, seed, channels=1):
    """Images of 8 x 12 pixels whose brightest third tells the class."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(3), rng.integers(0, 3, count - 3)])
    images = rng.integers(0, 100, (count, channels, 8, 12))
    images += 120 * (np.arange(12) // 4 == labels[:, None])[:, None, None, :]
    return Dataset(images.astype(np.uint8), labels, NAMES)


def network(modulation="focal", **options):
    config = FocalNetConfig(
        image_size=(8, 12), patch_size=2, in_chans=1, num_classes=3, embed_dim=5, depths=(1, 2), focal_levels=(2, 1),
        focal_windows=(3, 3), drop_path_rate=0.3, modulation=modulation,
    )  # fmt: skip
    return mf.FocalNet(config, init="lecun", seed=2, **options)


def make_trainer(listener=None, folder=None, model=None, **changes):
    settings = {"epochs": 3, "batch_size": 8, "lr": 0.05, "warmup_steps": 2, "augmentation": Augmentation(shift=1)}
    train, validation = data(26, seed=0), data(11, seed=1)
    return Trainer(
        model or network(), train, validation, Standardize.fit(train), TrainConfig(**{**settings, **changes}),
        folder=folder, listener=listener,
    )  # fmt: skip

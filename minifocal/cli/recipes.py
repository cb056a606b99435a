"""What `train` does with each dataset when nothing else is asked for: a network that fits and how to train it."""

from dataclasses import dataclass, replace
from typing import Any

from minifocal.data.dataset import Dataset
from minifocal.errors import check_integer
from minifocal.models.config import FOCAL, FocalNetConfig
from minifocal.models.focalnet import FocalNet
from minifocal.training.augment import Augmentation
from minifocal.training.train_config import TrainConfig


@dataclass(frozen=True)
class Network:
    """A small network, in the words of `FocalNet.build`; one number of layers per stage."""

    patch_size: int
    hidden_size: int
    layers: tuple[int, ...]
    focal_levels: int = 2
    focal_kernel: int = 3
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.05
    init: str = "lecun"

    def build(self, modulation: str, data: Dataset, **options: Any) -> FocalNet:
        """Build it for the images of a dataset. options: seed, dtype, device, ops, recompute_levels, precision.

        One stage on square images is `FocalNet.build`'s, without a norm after the patches; otherwise the defaults
        of FocalNetConfig hold.
        """
        check_integer("hidden_size", self.hidden_size, at_least=1)
        for count in self.layers:
            check_integer("layers", count, at_least=1)
        height, width = data.image_size
        if len(self.layers) == 1 and height == width:
            return FocalNet.build(
                image_size=height,
                patch_size=self.patch_size,
                in_channels=data.in_channels,
                hidden_size=self.hidden_size,
                num_layers=self.layers[0],
                focal_levels=self.focal_levels,
                focal_kernel=self.focal_kernel,
                num_classes=data.num_classes,
                modulation=modulation,
                mlp_ratio=self.mlp_ratio,
                drop_path_rate=self.drop_path_rate,
                init=self.init,
                **options,
            )
        stages = len(self.layers)
        config = FocalNetConfig(
            image_size=data.image_size,
            patch_size=self.patch_size,
            in_chans=data.in_channels,
            num_classes=data.num_classes,
            embed_dim=self.hidden_size,
            depths=self.layers,
            mlp_ratio=self.mlp_ratio,
            drop_path_rate=self.drop_path_rate,
            focal_levels=(self.focal_levels,) * stages,
            focal_windows=(self.focal_kernel,) * stages,
            modulation=modulation,
        )
        return FocalNet(config, init=self.init, **options)


@dataclass(frozen=True)
class Recipe:
    """The networks of the gated modulations and of the published one, and the training of each."""

    gated_network: Network
    gated_training: TrainConfig
    focal_network: Network
    focal_training: TrainConfig

    def choose(self, modulation: str) -> tuple[Network, TrainConfig]:
        """Give the network and the training for a modulation."""
        if modulation == FOCAL:
            return self.focal_network, self.focal_training
        return self.gated_network, self.gated_training


def _recipe(training: TrainConfig, *, patch: int, dim: int, layers: int = 4, levels: int = 2) -> Recipe:
    """Gated: one stage of `dim` channels. Published: two stages of two blocks, patches and width halved.

    The published one learns with twice the rate and half the decay.
    """
    return Recipe(
        Network(patch, dim, (layers,), levels),
        training,
        Network(patch // 2, dim // 2, (2, 2), levels, mlp_ratio=2.0),
        replace(training, lr=2 * training.lr, weight_decay=training.weight_decay / 2),
    )


_MNIST = _recipe(TrainConfig(epochs=5, augmentation=Augmentation(shift=2)), patch=4, dim=64)
_CIFAR = _recipe(TrainConfig(epochs=20, augmentation=Augmentation(shift=4, flip=True)), patch=4, dim=96, levels=3)
_FOLDER = _recipe(TrainConfig(augmentation=Augmentation(shift=4, flip=True)), patch=8, dim=96)

# One network for all modulations: a single stage learns the shapes slowly.
_SHAPES_NETWORK = Network(4, 32, (2, 2), mlp_ratio=2.0)
_SHAPES_TRAINING = TrainConfig(
    # Clipped at a usual 5, one run of five comes off the rails late and ends far below the others.
    epochs=25,
    lr=0.1,
    weight_decay=1e-3,
    clip_norm=1.0,
    augmentation=Augmentation(shift=2, flip=True),
)

RECIPES = {
    "digits": _recipe(TrainConfig(epochs=36, augmentation=Augmentation(shift=1)), patch=2, dim=64, layers=3),
    "shapes": Recipe(_SHAPES_NETWORK, _SHAPES_TRAINING, _SHAPES_NETWORK, _SHAPES_TRAINING),
    "mnist": _MNIST,
    "fashion-mnist": _MNIST,
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
}


def recipe_for(data: str) -> Recipe:
    """Give the recipe of a dataset by its name; a folder of images has one of its own."""
    return RECIPES.get(data, _FOLDER)

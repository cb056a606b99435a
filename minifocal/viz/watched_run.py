"""A training on shapes, watched: what gates and modulator show of a few images, and whom a token depends on.

Two pictures are drawn from its record: gates during training, and receptive fields before and after.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minifocal.data.dataset import Dataset, Standardize
from minifocal.data.shapes import SHAPE_NAMES, make_shapes
from minifocal.models.focalnet import FocalNet
from minifocal.training.listener import Listener
from minifocal.training.step import evaluate, load_batch
from minifocal.training.train_config import TrainConfig
from minifocal.training.trainer import Trainer
from minifocal.viz.fields import effective_fields, level_names
from minifocal.viz.maps import BlockMaps, TokenMap, block_maps
from minifocal.viz.records import numbers, rounded

WATCHED_SEED, WATCHED_IMAGES = 1, 48  # shapes of another seed than those that are trained and tested on
KINDS = ("circle", "triangle", "cross")  # the first watched image of each is shown
BLOCK = 1  # of the first stage: the second block, whose tokens have seen their surroundings
SHOWN = ("gate 3 × 3", "modulator")
EPOCHS = (0, 1, 2, 5, 10)  # and the last; 0 is before training


@dataclass(frozen=True)
class WatchedRun:
    """What a record of a watched run holds.

    Attributes:
        size: of the images, in pixels. images: which of the watched ones are shown.
        epochs: (E,) when. maps: by name, (images, E, H, W): of tokens. block: whose.
        kernels: of the first stage's levels. token: row and column of the token that is looked from.
        fields: "before" and "after" training, (levels + 2, H, W): as `effective_fields` gives them.
        accuracy: on the test images, after the last epoch.
    """

    size: int
    images: list[int]
    block: str
    epochs: list[int]
    maps: dict[str, np.ndarray]
    kernels: list[int]
    token: tuple[int, int]
    fields: dict[str, np.ndarray]
    accuracy: float


def watched_images(size: int, indices: list[int]) -> np.ndarray:
    """Make the images that are shown again: (images, size, size, 3), uint8."""
    return make_shapes(max(indices) + 1, size, WATCHED_SEED).images[indices].transpose(0, 2, 3, 1)


def measure_run(
    model: FocalNet,
    train: Dataset,
    validation: Dataset,
    test: Dataset,
    config: TrainConfig,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Train a network on shapes and write down what is seen on the way.

    Args:
        model: with focal modulation and two blocks at least in its first stage, not trained yet.
        train, validation, test: square images of shapes. config: how to train.
        progress: called after every epoch.
    Raises:
        KeyboardInterrupt: the training was stopped.
    """
    size = train.image_size[0]
    watched = make_shapes(WATCHED_IMAGES, size, WATCHED_SEED)
    standardize = Standardize.fit(train)
    images, _ = load_batch(model, watched, standardize, watched.images, watched.labels)
    shown = [int(np.flatnonzero(watched.labels == SHAPE_NAMES.index(kind))[0]) for kind in KINDS]
    grid = tuple(n // model.patch_embed.stride for n in train.image_size)
    token = grid[0] // 2, grid[1] // 2
    watcher = _Watcher(model, images[shown], config.epochs, progress)
    fields = {"before": effective_fields(model, images, token)}
    if not Trainer(model, train, validation, standardize, config, listener=watcher).fit():
        raise KeyboardInterrupt
    fields["after"] = effective_fields(model, images, token)
    return {
        "data": "shapes",
        "size": size,
        "ops": model.ops.name,
        "training": config.to_dict(),
        "accuracy": evaluate(model, test, standardize).accuracy,
        "images": shown,
        "block": watcher.block,
        "epochs": list(watcher.seen),
        "maps": {name: rounded(np.stack([maps[name] for maps in watcher.seen.values()], axis=1)) for name in SHOWN},
        "kernels": list(model.config.kernel_sizes(0)),
        "token": list(token),
        "fields": {when: rounded(np.stack(found), 4) for when, found in fields.items()},
    }


def read_run(record: dict[str, Any]) -> WatchedRun:
    """Read what `measure_run` gave, out of a record that may hold anything."""
    images = [int(index) for index in record["images"]]
    if not 0 <= min(images) <= max(images) < WATCHED_IMAGES:
        raise ValueError(f"images are numbered 0 to {WATCHED_IMAGES - 1}, got {images}")
    epochs = [int(epoch) for epoch in record["epochs"]]
    kernels = [int(k) for k in record["kernels"]]
    row, column = (int(n) for n in record["token"])
    levels = len(level_names(kernels))
    fields = {when: numbers(record["fields"][when], levels, None, None) for when in ("before", "after")}
    for found in fields.values():
        if found.shape != fields["before"].shape or found.min() < 0.0 or abs(found.sum(axis=(1, 2)) - 1).max() > 0.1:
            raise ValueError("shares of a whole are not negative, and add up to 1")
        if not (0 <= row < found.shape[1] and 0 <= column < found.shape[2]):
            raise ValueError(f"the token {row, column} is not on the map")
    return WatchedRun(
        size=int(record["size"]),
        images=images,
        block=str(record["block"]),
        epochs=epochs,
        maps={name: numbers(record["maps"][name], len(images), len(epochs), None, None) for name in SHOWN},
        kernels=kernels,
        token=(row, column),
        fields=fields,
        accuracy=float(numbers(record["accuracy"])),
    )


class _Watcher(Listener):
    """Takes the maps of the watched block before training, after some epochs and after the last.

    Attributes:
        seen: by epoch, the maps by name, each (images, H, W). block: the block's name.
    """

    def __init__(self, model: FocalNet, images: Any, epochs: int, progress: Callable[[], object]) -> None:
        self.model, self.images, self.progress = model, images, progress
        self.wanted = {*EPOCHS, epochs}
        self.seen: dict[int, dict[str, np.ndarray]] = {}
        self.block = ""

    def on_start(self, trainer: Trainer) -> None:
        self._look(0)

    def on_epoch(self, record: dict[str, Any]) -> None:
        if record["epoch"] in self.wanted:
            self._look(record["epoch"])
        self.progress()

    def _look(self, epoch: int) -> None:
        _, cache = self.model.forward(self.images)
        found = [block_maps(self.model, cache, image)[BLOCK] for image in range(len(self.images))]
        self.block = found[0].name
        self.seen[epoch] = {name: np.stack([_named(maps, name).values for maps in found]) for name in SHOWN}


def _named(maps: BlockMaps, name: str) -> TokenMap:
    return next(found for found in maps.maps if found.name == name)

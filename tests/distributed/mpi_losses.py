"""Take 50 steps on the digits, by modulation and dtype, and print the loss of each: `python mpi_losses.py`."""

import json
import os
import signal
import sys
from dataclasses import replace

import numpy as np

from minifocal.cli.ranks import run_in_ranks
from minifocal.cli.recipes import recipe_for
from minifocal.data import Standardize, digits_splits
from minifocal.models.config import MODULATION_NAMES
from minifocal.training.listener import Listener
from minifocal.training.ranks import Ranks
from minifocal.training.trainer import Trainer

STEPS = 50
LEFT_OVER = 2  # images in the last batch of the shorter data: fewer than some jobs have ranks


class FiftyLosses(Listener):
    """Keeps the loss of every step, and presses Ctrl-C at the last one."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step(self, step, total, record, images) -> None:
        self.losses.append(record.loss)
        if step == STEPS:
            os.kill(os.getpid(), signal.SIGINT)


def losses(ranks: Ranks, modulation: str, dtype: str, images: int) -> list[float]:
    """Train as `minifocal train` does on the first images of the digits, with more drop path."""
    splits = digits_splits()
    train = splits.train.subset(np.arange(images))
    network, config = recipe_for("digits").choose(modulation)
    model = replace(network, drop_path_rate=0.2).build(modulation, train, seed=ranks.rank, dtype=dtype)
    listener = FiftyLosses()
    validation = splits.test.subset(np.arange(50))
    Trainer(model, train, validation, Standardize.fit(train), config, listener=listener, ranks=ranks).fit()
    return listener.losses


def main(ranks: Ranks) -> int:
    found = {
        f"{modulation} {dtype} {images}": losses(ranks, modulation, dtype, images)
        for modulation in MODULATION_NAMES
        for dtype, images in (("float32", 1293), ("float64", 1293), ("float64", 9 * 64 + LEFT_OVER))
    }
    print(json.dumps({"ranks": ranks.size, "losses": found}))
    return 0


if __name__ == "__main__":
    sys.exit(run_in_ranks("losses", main))

"""Where a run stands."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minifocal.arrays import Generator
from minifocal.errors import is_integer, is_real
from minifocal.training.checkpoint import MOST_STEPS

RECORD = ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds", "images_per_second")
"""What is kept of each epoch."""


@dataclass
class Progress:
    """Where a run stands; with the arrays, all there is to resume from."""

    epoch: int = 0  # epochs finished
    step: int = 0  # steps finished in the epoch under way
    loss_sum: float = 0.0  # over the images of the epoch under way
    right: int = 0
    seconds: float = 0.0  # of the epoch under way
    history: list[dict[str, Any]] = field(default_factory=list)
    rng_state: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, values: Any, rng: Generator) -> "Progress":
        """Read what `asdict` gave, out of a file that may hold anything; set the generator to where it stood.

        Raises:
            ValueError, TypeError, or what else comes of values that are none of a run.
        """
        progress = cls(**values)
        counts = (progress.epoch, progress.step, progress.right)
        if not all(is_integer(count) and 0 <= count < MOST_STEPS for count in counts):
            raise ValueError("counts must be whole numbers")
        if not all(is_real(value) for value in (progress.loss_sum, progress.seconds)):
            raise ValueError("sums must be numbers")
        if len(progress.history) != progress.epoch:
            raise ValueError("expected a record of every epoch")
        for number, record in enumerate(progress.history, start=1):
            if record.keys() != set(RECORD) or not all(map(is_real, record.values())) or record["epoch"] != number:
                raise ValueError(f"epoch {number} has a record of another kind")
        rng.bit_generator.state = progress.rng_state
        return progress

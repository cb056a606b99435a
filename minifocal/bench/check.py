"""Whether fast is also right: training steps with a table of operations beside the same steps with the reference."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minifocal.arrays import Array, as_numpy, to_device
from minifocal.bench.workloads import LEARNING_RATE, MODES, Workload
from minifocal.training.optim import SGD
from minifocal.training.step import train_step

STEPS = 10
TOLERANCE = 1e-4


class Trained(NamedTuple):
    """What the last of some training steps came to."""

    loss: float
    gradients: dict[str, Array]


class Difference(NamedTuple):
    """How far two trainings are apart, relative to the largest element of each array."""

    loss: float
    gradient: float  # of the parameter that is farthest
    parameter: str  # its name

    @property
    def passed(self) -> bool:
        """Whether both lie within the tolerance; a NaN does not."""
        return self.loss <= TOLERANCE and self.gradient <= TOLERANCE


def train(workload: Workload, ops: str, progress: Callable[[], object] = lambda: None, device: str = "cpu") -> Trained:
    """Make the steps, from the same weights on the same batch whatever the table and the device are.

    Raises:
        InputError: there is no such table, or no such device.
    """
    model = workload.model(ops, device)
    optimizer = SGD(model, lr=LEARNING_RATE)
    images, labels = (to_device(array, device) for array in workload.draw(MODES["train"]))
    loss = float("nan")
    for _ in range(STEPS):
        loss = train_step(model, optimizer, images, labels, rng=None).loss
        progress()
    return Trained(loss, {name: as_numpy(parameter.grad) for name, parameter in model.named_parameters()})


def compare(ours: Trained, reference: Trained) -> Difference:
    """Compare the last loss and all last gradients."""
    errors = {name: _relative(ours.gradients[name], gradient) for name, gradient in reference.gradients.items()}
    worst = max(errors, key=lambda name: np.inf if np.isnan(errors[name]) else errors[name])
    return Difference(_relative(np.array(ours.loss), np.array(reference.loss)), errors[worst], worst)


def _relative(actual: Array, expected: Array) -> float:
    if np.array_equal(actual, expected):
        return 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.abs(actual - expected).max() / np.abs(expected).max())

"""One training step, and how well a model does."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from minifocal.arrays import Array, Generator, as_floats, as_numpy, beside, get_array_module
from minifocal.data.dataset import Dataset, Standardize, batch_indices
from minifocal.errors import InputError
from minifocal.layers.base import Layer
from minifocal.training.distributed import GradientExchange
from minifocal.training.loss_scale import LossScaler
from minifocal.training.optim import Optimizer, clip_gradients
from minifocal.training.ranks import ALONE, Ranks
from minifocal.training.shards import loss_and_gradients


class StepRecord:
    """What a training step came to, measured before its update.

    Its numbers stay where the step computed them until they are first looked at: that waits for a device.
    `fetch_records` brings those of many steps at once.

    Args:
        loss, accuracy: scalar arrays.
    """

    def __init__(self, loss: Array, accuracy: Array) -> None:
        self._computed = loss, accuracy
        self._fetched: tuple[float, float] | None = None

    @property
    def loss(self) -> float:
        """Mean over the batch, in nats."""
        return self._numbers()[0]

    @property
    def accuracy(self) -> float:
        """Share of the batch that was right."""
        return self._numbers()[1]

    def _numbers(self) -> tuple[float, float]:
        if self._fetched is None:
            fetch_records([self])
        assert self._fetched is not None
        return self._fetched

    def __eq__(self, other: object) -> bool:
        return self._numbers() == other._numbers() if isinstance(other, StepRecord) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"StepRecord(loss={self.loss}, accuracy={self.accuracy})"


def fetch_records(records: Sequence[StepRecord]) -> None:
    """Bring the numbers of records to the host, in one transfer."""
    waiting = [record for record in records if record._fetched is None]
    numbers = iter(as_floats([scalar for record in waiting for scalar in record._computed]))
    for record, loss, accuracy in zip(waiting, numbers, numbers, strict=True):
        record._fetched = loss, accuracy


def train_step(
    model: Layer,
    optimizer: Optimizer,
    images: Array,
    labels: Array,
    rng: Generator | None,
    *,
    label_smoothing: float = 0.0,
    clip_norm: float | None = None,
    scaler: LossScaler | None = None,
    micro_batch: int | None = None,
    weight: float = 1.0,
    exchange: GradientExchange | None = None,
) -> StepRecord:
    """Make one step: forward, loss, backward, update.

    Args:
        model: to train. optimizer: made for it.
        images: (B, C, H, W), as the model takes them. labels: (B,), integers, beside the images.
        rng: source of drop path and dropout; None drops nothing.
        label_smoothing: of the loss. clip_norm: largest norm of all gradients together; None does not clip.
        scaler: made for the model, where it computes in float16; it may skip the update.
        micro_batch: how many images a thread, or a device, computes at a time at most, their gradients added up; None
            lets the network choose.
        weight, exchange: where these images are a part of a batch whose rest other ranks have: the part's weight, and
            what sums the gradients. The record is then of the whole batch.
    """
    outcome = step_gradients(
        model,
        images,
        labels,
        rng,
        label_smoothing=label_smoothing,
        clip_norm=clip_norm,
        scaler=scaler,
        micro_batch=micro_batch,
        weight=weight,
        exchange=exchange,
    )
    optimizer.step(outcome.skip)
    return StepRecord(outcome.loss, outcome.accuracy)


class StepOutcome(NamedTuple):
    """What a step comes to before its update: scalar arrays beside the model."""

    loss: Array
    accuracy: Array
    skip: Array | None  # whether to leave the update out; None where that is never done


def step_gradients(
    model: Layer,
    images: Array,
    labels: Array,
    rng: Generator | None,
    *,
    label_smoothing: float,
    clip_norm: float | None,
    scaler: LossScaler | None,
    micro_batch: int | None = None,
    weight: float = 1.0,
    exchange: GradientExchange | None = None,
) -> StepOutcome:
    """Do all of a step but its update; arguments as for train_step."""
    scale = None if scaler is None else scaler.scale
    if exchange is not None:
        exchange.begin()
    loss, logits = loss_and_gradients(
        model,
        images,
        labels,
        rng,
        label_smoothing,
        scale,
        weight=weight,
        micro_batch=micro_batch,
        completed=None if exchange is None else exchange.complete,
    )
    accuracy = (logits.argmax(axis=1) == labels).mean()
    if exchange is not None:
        loss, accuracy = exchange.finish([loss, accuracy * weight])
    skip = None if scaler is None else scaler.unscale(model)
    if clip_norm is not None:
        clip_gradients(model, clip_norm)
    return StepOutcome(loss, accuracy, skip)


class Evaluation(NamedTuple):
    """How well a model does on a dataset."""

    loss: float  # mean cross-entropy in nats
    accuracy: float  # share of images that are right
    confusion: list[list[int]]  # [label][prediction], counts


def evaluate(
    model: Layer,
    dataset: Dataset,
    standardize: Standardize,
    batch_size: int = 256,
    progress: Callable[[int], object] | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Measure a model on a whole dataset, without dropping or augmenting.

    Args:
        model: images to logits. dataset: what to measure on.
        standardize: as in training. batch_size: images at a time; it changes the memory, not the result.
        progress: called with the number of images of each batch that is done.
        ranks: who measures together, each on its part; all get the same.
    Raises:
        InputError: the model has another number of classes than the dataset.
    """
    sizes, losses, predictions = [], [], []  # on the model's device until the end: looking would wait for it
    mine = ranks.share(len(dataset))
    own_labels = dataset.labels[mine]
    for batch in batch_indices(len(own_labels), batch_size) if len(own_labels) else ():
        images, labels = load_batch(model, dataset, standardize, dataset.images[mine][batch], own_labels[batch])
        logits = model(images)
        if logits.shape[1] != dataset.num_classes:
            raise InputError(f"the model has {logits.shape[1]} classes, but the data has {dataset.num_classes}")
        loss, _ = model.ops.cross_entropy.forward(logits, labels)
        sizes.append(len(batch))
        losses.append(loss)
        predictions.append(logits.argmax(axis=1))
        if progress is not None:
            progress(len(batch))
    loss_sum = sum(loss * size for loss, size in zip(as_floats(losses), sizes, strict=True))
    confusion = np.zeros((dataset.num_classes, dataset.num_classes))
    if predictions:
        guesses = as_numpy(get_array_module(*predictions).concatenate(predictions))
        np.add.at(confusion, (own_labels, guesses), 1)
    totals = ranks.sum(np.append(confusion, loss_sum))
    confusion = totals[:-1].reshape(confusion.shape)
    right = float(confusion.trace())
    return Evaluation(float(totals[-1]) / len(dataset), right / len(dataset), confusion.astype(int).tolist())


def load_batch(
    model: Layer, dataset: Dataset, standardize: Standardize, pixels: Array, labels: Array
) -> tuple[Array, Array]:
    """Bring pixels and labels of a dataset to a model: standardized, in its dtype, on its device."""
    weight = next(model.parameters()).data
    images = standardize(pixels, dataset.max_value, weight.dtype)
    return beside(images, weight), beside(labels, weight)

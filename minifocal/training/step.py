"""One training step, and how well a model does."""

from collections.abc import Callable
from typing import NamedTuple

from minifocal.arrays import Array, Generator, as_numpy, device_of, to_device
from minifocal.data.dataset import Dataset, Standardize, batch_indices
from minifocal.errors import InputError
from minifocal.layers.base import Layer
from minifocal.training.optim import Optimizer, clip_gradients
from minifocal.training.shards import loss_and_gradients


class StepRecord(NamedTuple):
    """What a training step came to, measured before its update."""

    loss: float  # mean over the batch, in nats
    accuracy: float  # share of the batch that was right


def train_step(
    model: Layer,
    optimizer: Optimizer,
    images: Array,
    labels: Array,
    rng: Generator | None,
    *,
    label_smoothing: float = 0.0,
    clip_norm: float | None = None,
) -> StepRecord:
    """Make one step: forward, loss, backward, update.

    Args:
        model: to train. optimizer: made for it.
        images: (B, C, H, W), as the model takes them. labels: (B,), integers, beside the images.
        rng: source of drop path and dropout; None drops nothing.
        label_smoothing: of the loss. clip_norm: largest norm of all gradients together; None does not clip.
    """
    loss, logits = loss_and_gradients(model, images, labels, rng, label_smoothing)
    if clip_norm is not None:
        clip_gradients(model, clip_norm)
    optimizer.step()
    return StepRecord(float(loss), float((logits.argmax(axis=1) == labels).mean()))


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
) -> Evaluation:
    """Measure a model on a whole dataset, without dropping or augmenting.

    Args:
        model: images to logits. dataset: what to measure on.
        standardize: as in training. batch_size: images at a time; it changes the memory, not the result.
        progress: called with the number of images of each batch that is done.
    Raises:
        InputError: the model has another number of classes than the dataset.
    """
    loss_sum = 0.0
    confusion = [[0] * dataset.num_classes for _ in range(dataset.num_classes)]
    for batch in batch_indices(len(dataset), batch_size):
        images, labels = load_batch(model, dataset, standardize, dataset.images[batch], dataset.labels[batch])
        logits = model(images)
        if logits.shape[1] != dataset.num_classes:
            raise InputError(f"the model has {logits.shape[1]} classes, but the data has {dataset.num_classes}")
        loss, _ = model.ops.cross_entropy.forward(logits, labels)
        loss_sum += float(loss) * len(batch)
        predictions = as_numpy(logits.argmax(axis=1))
        for label, prediction in zip(dataset.labels[batch].tolist(), predictions.tolist(), strict=True):
            confusion[label][prediction] += 1
        if progress is not None:
            progress(len(batch))
    right = sum(confusion[label][label] for label in range(dataset.num_classes))
    return Evaluation(loss_sum / len(dataset), right / len(dataset), confusion)


def load_batch(
    model: Layer, dataset: Dataset, standardize: Standardize, pixels: Array, labels: Array
) -> tuple[Array, Array]:
    """Bring pixels and labels of a dataset to a model: standardized, in its dtype, on its device."""
    weight = next(model.parameters()).data
    images = standardize(pixels, dataset.max_value, weight.dtype)
    device = device_of(weight)
    return to_device(images, device), to_device(labels, device)

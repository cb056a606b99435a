"""Images with labels in memory: checking, splitting, standardizing and batching them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minifocal.arrays import random_generator
from minifocal.errors import InputError, shown

PIXEL_DTYPES = ("uint8", "float32", "float64")
CHUNK_IMAGES = 1024


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with labels, in memory.

    Attributes:
        images: (N, C, H, W), uint8, float32 or float64.
        labels: (N,) int64, each an index into `class_names`; other integer types are converted.
        class_names: one name for each class.
        max_value: the pixel value that means 1.0: 255 for bytes, 16 for the digits, 1 for floats in [0, 1].

    Raises:
        InputError: wrong rank or dtype, no images, counts that disagree, a label without a name, or an
            image that is not finite.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    max_value: float = 255.0

    def __post_init__(self) -> None:
        _check_pixels(self.images, self.max_value)
        _check_labels(self.labels, len(self.images), len(self.class_names))
        # A frozen dataclass can set its own field only this way.
        object.__setattr__(self, "labels", self.labels.astype(np.int64, copy=False))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """Number of classes, those without any image included."""
        return len(self.class_names)

    @property
    def in_channels(self) -> int:
        """Channels of one image."""
        return int(self.images.shape[1])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of one image, in pixels."""
        return int(self.images.shape[2]), int(self.images.shape[3])

    def subset(self, indices: np.ndarray) -> "Dataset":
        """Give the images at `indices`, in that order, as a dataset of its own (a copy)."""
        return Dataset(self.images[indices], self.labels[indices], self.class_names, self.max_value)


@dataclass(frozen=True)
class Splits:
    """What to train on and what to test on.

    Attributes:
        name: name of the data.
        train: images to learn from.
        test: images to measure on.
        note: one line: where the data comes from, under which licence, how it was split.

    Raises:
        InputError: the two halves differ in image shape, class names or `max_value`.
    """

    name: str
    train: Dataset
    test: Dataset
    note: str

    def __post_init__(self) -> None:
        train, test = self.train, self.test
        for what, ours, theirs in (
            ("image shape", train.images.shape[1:], test.images.shape[1:]),
            ("class names", train.class_names, test.class_names),
            ("max_value", train.max_value, test.max_value),
        ):
            if ours != theirs:
                raise InputError(f"train and test must have the same {what}, got {ours} and {theirs}")


def _check_pixels(images: np.ndarray, max_value: float) -> None:
    if images.ndim != 4:
        raise InputError(
            f"images must be (count, channels, height, width), got shape {images.shape}; "
            "grey images need images[:, None]"
        )
    if 0 in images.shape:
        raise InputError(f"empty dataset: expected at least one image, got shape {images.shape}")
    if images.dtype.name not in PIXEL_DTYPES:
        raise InputError(f"images must be {', '.join(PIXEL_DTYPES)}, got {images.dtype}; convert with astype")
    if not (np.isfinite(max_value) and max_value > 0):
        raise InputError(f"max_value must be a positive number, got {max_value}; use 255 for bytes, 1 for floats")
    if images.dtype.kind == "f":
        for start in range(0, len(images), CHUNK_IMAGES):
            finite = np.isfinite(images[start : start + CHUNK_IMAGES]).all(axis=(1, 2, 3))
            if not finite.all():
                bad = start + int(np.argmin(finite))
                raise InputError(f"images must be finite, but image {bad} holds NaN or infinity; clean the data first")


def _check_labels(labels: np.ndarray, image_count: int, class_count: int) -> None:
    if labels.shape != (image_count,):
        raise InputError(
            f"labels must be one for each image, shape ({image_count},), got shape {labels.shape}; "
            "pass one integer per image"
        )
    if labels.dtype.kind not in "iu":
        raise InputError(f'labels must be integers, got {labels.dtype}; use .astype("int64")')
    outside = (labels < 0) | (labels >= class_count)
    if outside.any():
        bad = int(np.argmax(outside))
        raise InputError(
            f"labels must be 0 to {class_count - 1} for {class_count} classes, "
            f"got {labels[bad]} for image {bad}; mend the labels or give more class names"
        )


def stratified_split(dataset: Dataset, test_size: int, seed: int) -> tuple[Dataset, Dataset]:
    """Split into (rest, test), each class by its share of the whole.

    The shares are rounded by the largest remainder, so the test split holds exactly `test_size` images and
    each class is within one image of its share. Both halves keep the original order.

    Args:
        dataset: what to split.
        test_size: number of test images, 1 to len(dataset) - 1.
        seed: the same seed gives the same split.
    Raises:
        InputError: `test_size` would leave one half empty.
    """
    count = len(dataset)
    if not 1 <= test_size < count:
        raise InputError(
            f"test_size must be 1 to {count - 1} for {count} images, got {test_size}; "
            "both splits need at least one image"
        )
    class_counts = np.bincount(dataset.labels, minlength=dataset.num_classes)
    quotas, remainders = np.divmod(class_counts * test_size, count)
    quotas[np.argsort(-remainders, kind="stable")[: test_size - quotas.sum()]] += 1

    rng = random_generator(seed)
    in_test = np.zeros(count, dtype=bool)
    for label, quota in enumerate(quotas):
        members = np.flatnonzero(dataset.labels == label)
        in_test[rng.permutation(members)[:quota]] = True
    return dataset.subset(np.flatnonzero(~in_test)), dataset.subset(np.flatnonzero(in_test))


@dataclass(frozen=True)
class Standardize:
    """Bring each channel to mean 0 and standard deviation 1, as measured on the training images.

    Attributes:
        mean: one value for each channel, in units of `max_value`.
        std: one value for each channel, in the same units; 1 for a channel that never changes.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise InputError(
                f"mean and std must have one value per channel, got {len(self.mean)} and {len(self.std)}; "
                "give both the same length"
            )
        if not np.isfinite(self.mean).all() or not np.isfinite(self.std).all() or min(self.std) <= 0:
            raise InputError(f"mean must be finite and std positive, got {self.mean} and {self.std}; fit them again")

    @classmethod
    def fit(cls, dataset: Dataset) -> "Standardize":
        """Measure mean and standard deviation (of the population) of each channel, in float64."""
        channels = (dataset.images[:, index] for index in range(dataset.in_channels))
        means, stds = zip(*(_mean_and_std(pixels) for pixels in channels), strict=True)
        scale = dataset.max_value
        return cls(tuple(mean / scale for mean in means), tuple(std / scale if std else 1.0 for std in stds))

    def __call__(self, images: np.ndarray, max_value: float, dtype: Any) -> np.ndarray:
        """Give (images / max_value - mean) / std as an array (B, C, H, W) of `dtype`.

        Raises:
            InputError: the images are not (B, C, H, W) with the C channels of `mean`.
        """
        if images.ndim != 4 or images.shape[1] != len(self.mean):
            raise InputError(f"images must be (batch, {len(self.mean)}, height, width), got shape {images.shape}")
        mean = np.array(self.mean, dtype=dtype)[:, None, None]
        std = np.array(self.std, dtype=dtype)[:, None, None]
        return (images.astype(dtype) / np.dtype(dtype).type(max_value) - mean) / std

    def to_dict(self) -> dict[str, list[float]]:
        """Give mean and std as lists, ready for JSON; `from_dict` reads them back exactly."""
        return {"mean": list(map(float, self.mean)), "std": list(map(float, self.std))}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Standardize":
        """Read what `to_dict` gave.

        Raises:
            InputError: "mean" or "std" is missing or no list of numbers.
        """
        try:
            return cls(tuple(map(float, values["mean"])), tuple(map(float, values["std"])))
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f'expected "mean" and "std" as lists of numbers, got {shown(values)}; fit them again'
            ) from error


def _mean_and_std(pixels: np.ndarray) -> tuple[float, float]:
    """Measure in chunks: a float64 copy of all bytes would take eight times the memory of the data."""
    mean = float(pixels.mean(dtype=np.float64))
    # Rounding leaves a tiny spread in a constant channel; dividing by it would blow up the rounding errors.
    if pixels.min() == pixels.max():
        return mean, 0.0
    chunks = (pixels[start : start + CHUNK_IMAGES] for start in range(0, len(pixels), CHUNK_IMAGES))
    total = sum(float(np.square(chunk - mean, dtype=np.float64).sum()) for chunk in chunks)
    return mean, float(np.sqrt(total / pixels.size))


def batch_indices(count: int, batch_size: int, rng: np.random.Generator | None = None) -> Iterator[np.ndarray]:
    """Cut the samples 0 … count-1 into batches; the last one may be short.

    Args:
        count: number of samples.
        batch_size: samples per batch.
        rng: shuffles the samples; without it they come in order.
    Returns:
        an iterator over arrays of indices, which together hold each sample once.
    Raises:
        InputError: a size below 1, or, when shuffling, a batch larger than the data.
    """
    if count < 1 or batch_size < 1:
        raise InputError(f"count and batch_size must be at least 1, got {count} and {batch_size}")
    if rng is not None and batch_size > count:
        raise InputError(
            f"batch larger than the data: batch_size {batch_size}, but only {count} images; "
            f"use a batch_size of at most {count}"
        )
    order = np.arange(count) if rng is None else rng.permutation(count)
    return (order[start : start + batch_size] for start in range(0, count, batch_size))

"""One step on several ranks: each computes a part of the batch, and the gradients are summed while they are made.

Every rank draws, from the same generator, what the whole batch draws, and takes the part of its own images; it weights
its loss by its part of the batch. So a step comes to the same, but for rounding, on any number of ranks.
"""

import threading
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from minifocal.arrays import Array, Generator, beside, get_array_module
from minifocal.layers.base import Layer, Parameter
from minifocal.training.ranks import Ranks, Sum

BUCKET_BYTES = 2**22
"""Of gradients that are summed together: enough that a network is busy sending, not answering."""
ALIGNMENT = 16  # bytes, at which each gradient begins, as arrays of their own do at least


class BatchPart(NamedTuple):
    """A rank's part of a batch.

    Attributes:
        images: which of the batch. weight: of their mean loss in the batch's; 0 of an image that stands in.
    """

    images: slice
    weight: float


def part_of_batch(ranks: Ranks, count: int) -> BatchPart:
    """Give this rank's part of a batch of `count` images.

    Of a batch with fewer images than ranks some have none: they go through the first one, with weight 0, so that they
    draw what all draw and take part in every sum.
    """
    own = ranks.share(count)
    if own.start == own.stop:
        return BatchPart(slice(0, 1), 0.0)
    return BatchPart(own, (own.stop - own.start) / count)


class BatchDraws:
    """A generator for some images of a batch: draws for all of them, and gives theirs.

    Args:
        rng: to draw from; in the same state in all ranks. batch: images of the whole batch. part: which are asked for.
    """

    def __init__(self, rng: Generator, batch: int, part: slice) -> None:
        self.rng, self.batch, self.part = rng, batch, part

    def random(self, shape: int | tuple[int, ...]) -> np.ndarray:
        """Draw from [0, 1) for an array whose first axis counts images."""
        return self.rng.random(self._whole(shape))[self.part]

    def integers(self, low: int, high: int, shape: int | tuple[int, ...]) -> np.ndarray:
        """Draw from low ... high - 1 for an array whose first axis counts images."""
        return self.rng.integers(low, high, self._whole(shape))[self.part]

    def _whole(self, shape: int | tuple[int, ...]) -> tuple[int, ...]:
        return (self.batch, *(() if isinstance(shape, int) else shape[1:]))


class GradientExchange:
    """Sums the gradients of all ranks while the way back still runs.

    Gradients lie one behind the other in a few large arrays, buckets: those of the last layers, which are complete
    first, in the first one. A bucket is summed as soon as all of its gradients are complete and the buckets before it
    are under way, so in the same order in all ranks.

    Args:
        model: to train, on its device; each gradient becomes a view into a bucket.
        ranks: who trains.
        bucket_bytes: of one bucket, at least; the last may have less.
    Attributes:
        bytes: of all buckets together, which is what a step sums.
    """

    def __init__(self, model: Layer, ranks: Ranks, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.ranks = ranks
        self.lock = threading.Lock()
        parameters = list({id(parameter): parameter for parameter in model.parameters()}.values())
        self.buckets = _fill_buckets(parameters[::-1], bucket_bytes)
        self.bucket_of = {id(parameter): bucket for bucket in self.buckets for parameter in bucket.parameters}
        self.bytes = sum(bucket.values.nbytes for bucket in self.buckets)
        self.begun: list[Sum] = []

    def begin(self) -> None:
        """A way back begins: no gradient is complete."""
        self.begun = []
        for bucket in self.buckets:
            bucket.missing = len(bucket.parameters)

    def complete(self, parameter: Parameter) -> None:
        """The gradient of this parameter is complete; any thread may say so."""
        with self.lock:
            self.bucket_of[id(parameter)].missing -= 1
            if not self.ranks.overlaps:
                return
            for sum_under_way in self.begun:
                sum_under_way.poll()
            for bucket in self.buckets[len(self.begun) :]:
                if bucket.missing:
                    break
                self.begun.append(self.ranks.start_sum(bucket.values))

    def finish(self, scalars: Sequence[Array]) -> list[Array]:
        """Wait until all gradients are summed.

        Args:
            scalars: scalar arrays of one home to be summed along.
        Returns:
            their sums, in float64.
        """
        totals = get_array_module(*scalars).stack([scalar.astype("float64") for scalar in scalars])
        waiting = [bucket.values for bucket in self.buckets[len(self.begun) :]]
        for array in (*waiting, totals):
            self.begun.append(self.ranks.start_sum(array))
        for sum_under_way in self.begun:
            sum_under_way.wait()
        return list(totals)


class _Bucket:
    """Gradients in one array; `missing` are those that are not complete yet."""

    missing: int

    def __init__(self, parameters: list[Parameter], values: Array) -> None:
        self.parameters, self.values = parameters, values


def _fill_buckets(parameters: list[Parameter], bucket_bytes: int) -> list[_Bucket]:
    """Lay out gradients in buckets, in the order given."""
    buckets, waiting, size = [], [], 0
    for parameter in parameters:
        waiting.append(parameter)
        size += parameter.data.nbytes
        if size >= bucket_bytes or parameter is parameters[-1]:
            buckets.append(_make_bucket(waiting))
            waiting, size = [], 0
    return buckets


def _make_bucket(parameters: list[Parameter]) -> _Bucket:
    first = parameters[0].data
    step = ALIGNMENT // first.dtype.itemsize
    places = [0, *accumulate(-(-parameter.data.size // step) * step for parameter in parameters)]
    values = beside(np.zeros(places[-1], dtype=first.dtype), first)
    for parameter, (start, _) in zip(parameters, pairwise(places), strict=True):
        parameter.grad = values[start : start + parameter.data.size].reshape(parameter.data.shape)
    return _Bucket(parameters, values)

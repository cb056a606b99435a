"""The loss of a batch and its gradients, computed in shards: a few images at a time, in threads side by side.

A network that has no statistics over the batch treats every image by itself, so the gradient of a batch is the sum of
its shards' gradients. Caches are returned and never stored on layers, so one set of weights serves all threads; only
gradients need a place for each. And the caches of a few images at a time need little memory.
"""

import threading
from functools import partial
from typing import Any

from minifocal.arrays import Array, Generator, get_array_module
from minifocal.errors import InputError
from minifocal.fused.blocks import sum_into
from minifocal.layers.base import Layer
from minifocal.threads import one_blas_thread, over_items, run_together, shards, thread_count


def loss_and_gradients(
    model: Layer,
    images: Array,
    labels: Array,
    rng: Generator | None,
    label_smoothing: float = 0.0,
    scale: Array | None = None,
) -> tuple[Array, Array]:
    """Go through a batch forward and back; set the gradients of all parameters to those of its loss.

    Args:
        model: to train; its table of operations says whether threads may share the batch.
        images: (B, C, H, W), as the model takes them. labels: (B,), integers, beside the images.
        rng: source of drop path and dropout; None drops nothing. The draws are those for the whole batch.
        label_smoothing: of the loss.
        scale: of the gradients, a scalar array beside the parameters; None is 1.
    Returns:
        loss: mean over the batch, in nats, without the scale; logits: (B, N).
    Raises:
        InputError: images or labels that do not fit the model or each other.
    """
    if not model.ops.threaded:
        model.zero_grad()
        return _go_through(model, images, labels, rng, label_smoothing, scale, 1.0)
    model.check_input(images)
    if labels.shape != images.shape[:1]:
        raise InputError(f"expected a label for each of {len(images)} images, got labels {tuple(labels.shape)}")
    if len(images) < thread_count():  # threads share each operation instead
        model.zero_grad()
        with one_blas_thread():
            return _go_through(model, images, labels, rng, label_smoothing, scale, 1.0)
    shares = shards(len(images), model.shard_size(images.shape))
    draws = None if rng is None else SharedDraws(rng, len(images), sum(map(len, shares)))
    replicas = [model.replica() for _ in shares]

    def task(replica: Layer, share: list[slice]) -> list[tuple[Array, Array]]:
        results = []
        for part in share:
            draw = draws and draws.shard(part)
            weight = (part.stop - part.start) / len(images)
            results.append(_go_through(replica, images[part], labels[part], draw, label_smoothing, scale, weight))
        return results

    results = run_together([partial(task, *work) for work in zip(replicas, shares, strict=True)])
    losses, logits = zip(*(result for share in results for result in share), strict=True)
    _sum_gradients(model, replicas)
    return sum(losses), get_array_module(images).concatenate(logits)


def _go_through(
    model: Layer, images: Array, labels: Array, rng: Any, label_smoothing: float, scale: Array | None, weight: float
) -> tuple[Array, Array]:
    """Forward and back; give the loss, times the weight of these images in the batch, and the logits."""
    logits, cache = model.forward(images, rng)
    loss, loss_cache = model.ops.cross_entropy.forward(logits, labels, label_smoothing)
    dloss = weight if scale is None else weight * scale.astype(loss.dtype)
    model.backward(model.ops.cross_entropy.backward(loss_cache, dloss), cache)
    return loss * weight, logits


def _sum_gradients(model: Layer, replicas: list[Layer]) -> None:
    """Set each gradient of the model to the sum of its replicas', in their order."""
    rows = zip(model.parameters(), *(replica.parameters() for replica in replicas), strict=True)
    over_items(
        lambda row: sum_into(row[0].grad, [share.grad for share in row[1:] if share.has_gradient]),
        list(rows),
        [parameter.data.size for parameter in model.parameters()],
    )


class SharedDraws:
    """One generator for all shards of a batch: each gets its part of the draws that the whole batch would get.

    Args:
        rng: to draw from. batch: images of the whole batch.
        takers: shards that there will be; each draws the same number of times. A draw is kept until all have taken
            their parts: of dropout, which draws for every value, that is a lot.
    """

    def __init__(self, rng: Generator, batch: int, takers: int) -> None:
        self.rng, self.batch, self.takers = rng, batch, takers
        self.lock = threading.Lock()
        self.drawn = 0
        self.waiting: dict[int, tuple[Any, int]] = {}  # by number of the draw: the draw, and how many shards want it

    def shard(self, part: slice) -> Any:
        """Give what a layer draws from for some images of the batch: it has a `random` as a generator has."""
        return _Shard(self, part)

    def draw(self, number: int, shape: tuple[int, ...]) -> Any:
        """Give a draw of the whole batch by its number; shape is that of one image's part."""
        with self.lock:
            if number == self.drawn:
                self.drawn += 1
                self.waiting[number] = self.rng.random((self.batch, *shape)), self.takers
            draw, wanted = self.waiting.pop(number)
            if wanted > 1:
                self.waiting[number] = draw, wanted - 1
            return draw


class _Shard:
    """A generator's `random` for some images of a batch."""

    def __init__(self, draws: SharedDraws, part: slice) -> None:
        self.draws, self.part = draws, part
        self.number = 0

    def random(self, shape: tuple[int, ...]) -> Any:
        draw = self.draws.draw(self.number, shape[1:])
        self.number += 1
        return draw[self.part]

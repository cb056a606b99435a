"""The loss of a batch and its gradients, computed in shards: a few images at a time, in threads side by side.

A network that has no statistics over the batch treats every image by itself, so the gradient of a batch is the sum of
its shards' gradients. Caches are returned and never stored on layers, so one set of weights serves all threads; only
gradients need a place for each. And the caches of a few images at a time need little memory.
"""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

from minifocal.arrays import Array, Generator, get_array_module
from minifocal.errors import InputError
from minifocal.fused.blocks import blocks, sum_into
from minifocal.layers.base import Layer, Parameter, without_gradient
from minifocal.threads import one_blas_thread, over_items, run_together, shards, thread_count

Completed = Callable[[Parameter], object]


def loss_and_gradients(
    model: Layer,
    images: Array,
    labels: Array,
    rng: Generator | None,
    label_smoothing: float = 0.0,
    scale: Array | None = None,
    *,
    weight: float = 1.0,
    micro_batch: int | None = None,
    completed: Completed | None = None,
) -> tuple[Array, Array]:
    """Go through a batch forward and back; set the gradients of all parameters to those of its loss.

    Args:
        model: to train; its table of operations says whether threads may share the batch.
        images: (B, C, H, W), as the model takes them. labels: (B,), integers, beside the images.
        rng: source of drop path and dropout; None drops nothing. The draws are those for the whole batch.
        label_smoothing: of the loss.
        scale: of the gradients, a scalar array beside the parameters; None is 1.
        weight: of these images, where they are a part of a larger batch.
        micro_batch: how many images a thread, or a device, computes at a time at most: fewer take less memory.
        completed: is told of each parameter as soon as its gradient is complete, those of the last layers first; by
            the thread that added to it last.
    Returns:
        loss: mean over the batch, in nats, times the weight, without the scale; logits: (B, N).
    Raises:
        InputError: images or labels that do not fit the model or each other.
    """
    threads_share_images = model.ops.threaded and len(images) >= thread_count()
    model.check_input(images)
    if labels.shape != images.shape[:1]:
        raise InputError(f"expected a label for each of {len(images)} images, got labels {tuple(labels.shape)}")
    if threads_share_images:
        shares = shards(len(images), min(model.shard_size(images.shape), micro_batch or len(images)))
    else:
        shares = [list(blocks(0, len(images), micro_batch))] if micro_batch else [[slice(0, len(images))]]
        model.zero_grad()
    parts = sum(map(len, shares))
    draws = None if rng is None else SharedDraws(rng, len(images), parts)
    watch = None if completed is None else _Watch(model, parts, completed)
    if threads_share_images:
        replicas = [model.replica(parameter=watch.apart if watch else without_gradient) for _ in shares]
    else:
        replicas = [model.replica(parameter=watch.in_place) if watch else model]

    def task(replica: Layer, share: list[slice]) -> list[tuple[Array, Array]]:
        results = []
        for part in share:
            draw = draws and draws.shard(part)
            of_batch = weight * ((part.stop - part.start) / len(images))
            results.append(_go_through(replica, images[part], labels[part], draw, label_smoothing, scale, of_batch))
        return results

    tasks = [partial(task, *work) for work in zip(replicas, shares, strict=True)]
    if threads_share_images:
        results = run_together(tasks)
    else:
        with one_blas_thread() if model.ops.threaded else nullcontext():  # threads share each operation instead
            results = [tasks[0]()]
    losses, logits = zip(*(result for share in results for result in share), strict=True)
    if watch is not None:
        watch.end()
    elif threads_share_images:
        _sum_gradients(model, replicas)
    return sum(losses[1:], losses[0]), logits[0] if parts == 1 else get_array_module(images).concatenate(logits)


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
        lambda row: _sum_gradient(*row),
        list(rows),
        [parameter.data.size for parameter in model.parameters()],
    )


def _sum_gradient(parameter: Parameter, *shares: Parameter) -> None:
    sum_into(parameter.grad, [share.grad for share in shares if share.has_gradient])


class _Watch:
    """Sees each addition to a gradient, and so when one is complete.

    A way back adds to each gradient once, so a parameter's is complete when every part of the batch has added to it
    (twice where two layers share it).

    Args:
        model: whose gradients are awaited. parts: ways back that there will be. completed: is told.
    """

    def __init__(self, model: Layer, parts: int, completed: Completed) -> None:
        self.completed = completed
        self.lock = threading.Lock()
        self.parameters = {id(parameter): parameter for parameter in model.parameters()}
        self.missing = {key: parts * uses for key, uses in Counter(map(id, model.parameters())).items()}
        self.replicas: dict[int, list[Parameter]] = defaultdict(list)

    def in_place(self, parameter: Parameter) -> Parameter:
        """Give what stands for a parameter in the one replica: it has the same gradient."""
        return _Watched(parameter.data, parameter.grad, partial(self._added, parameter))

    def apart(self, parameter: Parameter) -> Parameter:
        """Give what stands for a parameter in one of several replicas: it has a gradient of its own."""
        replica = _Watched(parameter.data, without_gradient(parameter).grad, partial(self._added, parameter))
        self.replicas[id(parameter)].append(replica)
        return replica

    def end(self) -> None:
        """All ways back are done: what nobody added to is complete as well."""
        for key, parameter in self.parameters.items():
            if self.missing[key]:
                self._complete(parameter)

    def _added(self, parameter: Parameter) -> None:
        with self.lock:
            self.missing[id(parameter)] -= 1
            left = self.missing[id(parameter)]
        if left < 0:
            raise RuntimeError(f"a way back adds twice to the gradient of {parameter}: it cannot be told when it ends")
        if left == 0:
            self._complete(parameter)

    def _complete(self, parameter: Parameter) -> None:
        if self.replicas:
            _sum_gradient(parameter, *self.replicas[id(parameter)])
        self.completed(parameter)


class _Watched(Parameter):
    """A parameter of a replica that tells of each gradient that is added to its own."""

    def __init__(self, data: Array, grad: Any, added: Callable[[], None]) -> None:
        self.data, self._grad, self._added = data, grad, added

    @property
    def grad(self) -> Any:
        return self._grad

    @grad.setter
    def grad(self, value: Any) -> None:
        self._grad = value
        self._added()


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

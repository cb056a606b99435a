"""How near kernels come to the bandwidth of a GPU's memory: the bytes that must move, over the time that it takes."""

import math
from collections.abc import Callable
from itertools import cycle
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from minifocal.arrays import Array, random_generator, to_device
from minifocal.fused import gpu
from minifocal.ops import GPU_TABLE, Op, get_ops

BATCH = 128
MAPS = ((56, 96), (28, 192), (14, 384), (7, 768))  # side and channels of the stages of focalnet_tiny
CACHE_BYTES = 2**28  # more than the cache of any GPU: inputs take turns, so that none is still in there
COPY_BYTES = 2**30
WARM_UPS, ROUNDS = 3, 30
GOALS = {"depthwise_conv forward": 0.70, "depthwise_conv backward": 0.40}
"""Shares of the bandwidth of a copy that are wanted."""


class KernelCase(NamedTuple):
    """A way of an operation on maps (BATCH, side, side, C), with kernels of size k where there are any."""

    op: str
    way: str  # "forward" or "backward"
    side: int
    C: int
    k: int

    @property
    def title(self) -> str:
        """In tables."""
        return f"{self.op} {self.way}"

    @property
    def least_bytes(self) -> int:
        """The bytes that must move in float32: each input read once, each output written once."""
        map_numbers = BATCH * self.side * self.side * self.C
        kernel, tokens = self.k * self.k * self.C, BATCH * self.side * self.side
        maps, others = {
            ("depthwise_conv", "forward"): (2, kernel),  # x; z
            ("depthwise_conv", "backward"): (3, 2 * kernel),  # dz, x; dx
            ("focal_level", "forward"): (5, kernel + tokens),  # ctx_before, aggregate; ctx, slope, aggregate
            ("focal_level", "backward"): (6, 2 * kernel + 2 * tokens),  # dctx, daggregate, ctx, slope, x; dctx_before
            ("layer_norm", "forward"): (3, 2 * self.C + tokens),  # x; y, x_hat
            ("layer_norm", "backward"): (3, 3 * self.C + tokens),  # dy, x_hat; dx
            ("gelu", "forward"): (3, 0),  # x; y, slope
            ("gelu", "backward"): (3, 0),  # dy, slope; dx
        }[self.op, self.way]
        return 4 * (maps * map_numbers + others)


class Throughput(NamedTuple):
    """What was measured of a case."""

    case: KernelCase
    milliseconds: float
    share: float  # of the bandwidth of a copy
    goal: float | None


def cases() -> list[KernelCase]:
    """List what is measured."""
    convs = [
        ("depthwise_conv", 3),
        ("depthwise_conv", 5),
        ("depthwise_conv", 7),
        ("focal_level", 3),
        ("focal_level", 5),
    ]
    ops = [*convs, ("layer_norm", 0), ("gelu", 0)]
    return [KernelCase(op, way, side, C, k) for op, k in ops for way in ("forward", "backward") for side, C in MAPS]


def long_copy(device: str) -> Callable[[], None]:
    """Give a function that copies COPY_BYTES within the device's memory."""
    source = to_device(np.ones(COPY_BYTES // 4, np.float32), device)
    target = source.copy()

    def copy() -> None:
        target[...] = source

    return copy


def copy_bandwidth(copy: Callable[[], None]) -> float:
    """Measure bytes a second of a large copy, those read plus those written."""
    return 2 * COPY_BYTES / _median(copy)


def measure(case: KernelCase, bandwidth: float, device: str, ahead: Callable[[], None] = lambda: None) -> Throughput:
    """Measure one case against the bandwidth of a copy, in bytes a second.

    Args:
        ahead: work for the device before each call. A kernel may take 15 microseconds, and the host 50 to launch it:
            without anything ahead the device would wait, and the wait would be measured.
    """
    sets = cycle([_inputs(case, device) for _ in range(max(1, math.ceil(CACHE_BYTES / case.least_bytes)))])
    op: Op = getattr(get_ops(GPU_TABLE, device), case.op)

    def run() -> None:
        inputs, upstream, cache = next(sets)
        if case.way == "forward":
            op.forward(*inputs)
        else:
            op.backward(*upstream, cache)

    seconds = _median(run, ahead)
    return Throughput(case, 1000 * seconds, case.least_bytes / seconds / bandwidth, GOALS.get(case.title))


def _inputs(case: KernelCase, device: str) -> tuple[tuple[Array, ...], list[Array], Any]:
    """Give a call: its inputs, what comes back to its outputs, and its cache."""
    rng = random_generator(0)

    def draw(*shape: int) -> Array:
        return to_device(rng.standard_normal(shape, dtype=np.float32), device)

    x = draw(BATCH, case.side, case.side, case.C)
    inputs: tuple[Array, ...] = (x,)
    if case.op in ("depthwise_conv", "focal_level"):
        inputs += (draw(case.k, case.k, case.C),)
    if case.op == "focal_level":
        inputs += (draw(BATCH, case.side, case.side, 1), x.copy())
    if case.op == "layer_norm":
        inputs += (draw(case.C), draw(case.C))
    *outputs, cache = getattr(get_ops(GPU_TABLE, device), case.op).forward(*inputs)
    return inputs, [x.copy() for _ in outputs], cache


def _median(run: Callable[[], object], ahead: Callable[[], None] = lambda: None) -> float:
    for _ in range(WARM_UPS):
        run()
    seconds = []
    for _ in range(ROUNDS):
        ahead()
        seconds.append(gpu.elapsed(run))
    return median(seconds)

"""Who is measured on a GPU: the bare matrix products, PyTorch, and this package, all in one precision at a time."""

from collections.abc import Callable
from functools import partial

import numpy as np

from minifocal.arrays import Array, check_device, random_generator, to_device
from minifocal.bench import floor, gpu_peers
from minifocal.bench.measure import NotMeasuredError, interleave
from minifocal.bench.peers import COMPILED, EAGER
from minifocal.bench.processes import in_new_process
from minifocal.bench.workloads import LEARNING_RATE, Mode, Workload
from minifocal.fused import gpu
from minifocal.fused.gpu_ops import to_bfloat16
from minifocal.training.graphs import StepGraph
from minifocal.training.loss_scale import LossScaler
from minifocal.training.optim import SGD
from minifocal.training.step import train_step

FLOOR, REFERENCE, FUSED, GRAPHED = "floor", "reference", "cuda", "cuda graphed"
PEERS = (EAGER, COMPILED)
PRECISIONS = ("float32", "tf32", "bfloat16")
"""Measured if nothing else is asked for; "float16" is the fourth."""

ROUNDS = 30
MEMORY_STEPS = 3

Timed = Callable[[], float]
"""Does the work once, and gives the seconds that the GPU took for it."""


def candidates(mode: Mode, precision: str, torch: bool) -> list[str]:
    """List who is measured in a mode and a precision: the readable functions compute in float32 only."""
    ours = [*([REFERENCE] if precision == "float32" else []), FUSED, *([GRAPHED] if mode.training else [])]
    return [FLOOR, *(PEERS if torch else ()), *ours]


def prepare(candidate: str, workload: Workload, mode: Mode, precision: str, device: str) -> Timed:
    """Give the function that makes one training step or infers one batch, and times it by events of the device.

    Raises:
        InputError: there is no such device.
        NotMeasuredError: PyTorch sees no GPU, or cannot compile.
    """
    if candidate in PEERS:
        return gpu_peers.prepare(candidate, workload, mode, precision, check_device(device) or 0)
    return partial(gpu.elapsed, _own(candidate, workload, mode, precision, device))


def _own(candidate: str, workload: Workload, mode: Mode, precision: str, device: str) -> Callable[[], object]:
    if candidate == FLOOR:
        return _products(workload, mode, precision, device)
    model = workload.model(REFERENCE if candidate == REFERENCE else FUSED, device, precision)
    images, labels = (to_device(array, device) for array in workload.draw(mode))
    if not mode.training:
        return partial(model, images)
    optimizer = SGD(model, lr=LEARNING_RATE)
    scaler = LossScaler(model) if precision == "float16" else None
    if candidate == GRAPHED:
        return partial(StepGraph(model, optimizer, scaler=scaler), images, labels, None)
    return partial(train_step, model, optimizer, images, labels, None, scaler=scaler)


def _products(workload: Workload, mode: Mode, precision: str, device: str) -> Callable[[], None]:
    """The matrix products of a network alone, their operands rounded beforehand."""
    rng, tf32 = random_generator(0), precision == "tf32"

    def draw(*shape: int) -> Array:
        array = to_device(rng.standard_normal(shape, dtype=np.float32), device)
        if precision == "bfloat16":
            return to_bfloat16(array)
        return array.astype("float16") if precision == "float16" else array

    def room(*shape: int) -> Array:
        return to_device(np.empty(shape, np.float32), device)

    listed = floor.products(workload, mode)
    operands = {}
    for product in listed:
        x, weight, y = product[:2], product[1:], product[::2]
        operands[product] = draw(*x), draw(*weight), draw(*y), room(*y), room(*x), room(*weight)

    def multiply() -> None:
        for product in listed:
            x, weight, dy, y, dx, dweight = operands[product]
            gpu.multiply(x, weight, y, tf32=tf32)
            if mode.training:
                gpu.multiply(dy, weight, dx, transpose_b=True, tf32=tf32)
                gpu.multiply(x, dy, dweight, transpose_a=True, tf32=tf32)

    return multiply


def time_candidates(
    names: list[str],
    workload: Workload,
    mode: Mode,
    precision: str,
    device: str,
    rounds: int,
    progress: Callable[[], object] = lambda: None,
) -> tuple[dict[str, list[float]], list[str]]:
    """Time candidates in turns.

    Returns:
        seconds of each, as `interleave` gives them; and a line for each that could not run.
    Raises:
        InputError: there is no such device.
    """
    runs: dict[str, Timed] = {}
    notes = []
    for name in names:
        try:
            runs[name] = prepare(name, workload, mode, precision, device)
        except NotMeasuredError as error:
            notes.append(str(error))
    return interleave(runs, rounds, progress, clock=lambda run: run()), notes


def peak_memory(candidate: str, workload: Workload, mode: Mode, precision: str, device: str) -> int:
    """Measure the bytes of the device's memory that a new process takes for some training steps.

    Raises:
        NotMeasuredError: the process was ended.
    """
    return in_new_process(_run_and_tell, candidate, workload, mode, precision, device)


def _run_and_tell(candidate: str, workload: Workload, mode: Mode, precision: str, device: str) -> int:
    run = prepare(candidate, workload, mode, precision, device)
    for _ in range(MEMORY_STEPS):
        run()
    return gpu_peers.reserved_bytes() if candidate in PEERS else gpu.pool_bytes()

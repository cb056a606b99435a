"""Who is measured: the floor, PyTorch in its ways, and this package with each table of operations, all by name."""

from collections.abc import Callable

from minifocal.bench import floor, peers
from minifocal.bench.measure import NotMeasuredError, interleave
from minifocal.bench.workloads import LEARNING_RATE, Mode, Workload
from minifocal.training.optim import SGD
from minifocal.training.step import train_step

FLOOR = "floor"


def prepare(candidate: str, workload: Workload, mode: Mode) -> Callable[[], object]:
    """Give the function that makes one training step or infers one batch.

    Args:
        candidate: "floor", of peers.WAYS, or the name of a table of operations.
    Raises:
        InputError: there is no such table, or PyTorch cannot compile.
    """
    if candidate == FLOOR:
        return floor.prepare(workload, mode)
    if candidate in peers.WAYS:
        return peers.prepare(candidate, workload, mode)
    model = workload.model(candidate)
    images, labels = workload.draw(mode)
    if not mode.training:
        return lambda: model(images)
    optimizer = SGD(model, lr=LEARNING_RATE)
    return lambda: train_step(model, optimizer, images, labels, rng=None)


def time_candidates(
    candidates: list[str],
    workload: Workload,
    mode: Mode,
    rounds: int,
    progress: Callable[[], object] = lambda: None,
) -> tuple[dict[str, list[float]], list[str]]:
    """Time candidates in turns.

    Returns:
        seconds of each, as `interleave` gives them; and a line for each that could not run.
    Raises:
        InputError: there is no such table.
    """
    runs, notes = {}, []
    for candidate in candidates:
        try:
            runs[candidate] = prepare(candidate, workload, mode)
        except NotMeasuredError as error:
            notes.append(str(error))
    return interleave(runs, rounds, progress), notes

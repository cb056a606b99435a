"""Where the time of a training step goes, operation by operation."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

from minifocal.bench.instrument import wrap_ops
from minifocal.bench.workloads import LEARNING_RATE, MODES, Workload
from minifocal.training.optim import SGD
from minifocal.training.step import train_step

WARM_UPS, STEPS = 1, 3
WAYS = ("forward", "backward")

Way = tuple[str, str]
"""An operation's name, and "forward" or "backward"."""


class TimeSheet:
    """Shares the time that passes out among the functions at work.

    Several threads may run functions at once: each moment is then split evenly among them, so that all shares
    together are the time in which any function was at work.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[Way, float] = defaultdict(float)
        self.calls: Counter[Way] = Counter()
        self._lock = threading.Lock()
        self._at_work: Counter[Way] = Counter()
        self._last = time.perf_counter()

    def timed(self, name: str, way: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Give a function that does the same and is on the sheet."""

        def call(*args: Any, **options: Any) -> Any:
            self._change((name, way), 1)
            try:
                return function(*args, **options)
            finally:
                self._change((name, way), -1)

        return call

    def clear(self) -> None:
        """Forget the past."""
        with self._lock:
            self.seconds.clear()
            self.calls.clear()

    def _change(self, key: Way, by: int) -> None:
        with self._lock:
            now = time.perf_counter()
            workers = self._at_work.total()
            for busy, count in self._at_work.items():
                if count:
                    self.seconds[busy] += (now - self._last) * count / workers
            self._last = now
            self._at_work[key] += by
            self.calls[key] += by > 0


class ProfileRow(NamedTuple):
    """One operation's part in a training step, each way."""

    name: str
    shares: dict[str, float]  # of the whole time, by way
    calls: dict[str, int]  # in one step, by way


class Profile(NamedTuple):
    """All operations that were called, the longest first, and what is left: shares that add up to 1."""

    rows: list[ProfileRow]
    rest: float


def profile(workload: Workload, ops: str) -> Profile:
    """Watch training steps.

    Args:
        workload: network and batch.
        ops: name of the table of operations.
    Raises:
        InputError: there is no such table.
    """
    model, sheet = workload.model(ops), TimeSheet()
    model.use_ops(wrap_ops(model.ops, sheet.timed))
    optimizer = SGD(model, lr=LEARNING_RATE)
    images, labels = workload.draw(MODES["train"])

    def train(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            train_step(model, optimizer, images, labels, rng=None)
        return time.perf_counter() - start

    train(WARM_UPS)
    sheet.clear()
    whole = train(STEPS)
    names = {name for name, _ in sheet.calls}
    rows = [
        ProfileRow(
            name,
            {way: sheet.seconds[name, way] / whole for way in WAYS},
            {way: sheet.calls[name, way] // STEPS for way in WAYS},
        )
        for name in names
    ]
    rows.sort(key=lambda row: sum(row.shares.values()), reverse=True)
    return Profile(rows, 1.0 - sum(sheet.seconds.values()) / whole)

"""Ranks that are threads of one process: what several ranks say to each other, without MPI.

A sum holds what was in the array when it began, so a gradient that is added too late is missed, as over a network.
"""

import threading
from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np

from minifocal.errors import InputError
from minifocal.training.ranks import Ranks, Sum

PATIENCE = 60.0  # seconds, after which a test has failed: the ranks wait for each other


class Meeting:
    """Where the ranks put what they say: by the number of the exchange, from each rank."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.changed = threading.Condition()
        self.said: dict[Any, dict[int, Any]] = defaultdict(dict)
        self.failed: set[int] = set()

    def put(self, number: Any, rank: int, value: Any) -> None:
        with self.changed:
            self.said[number][rank] = value
            self.changed.notify_all()

    def all_of(self, number: Any) -> list[Any]:
        with self.changed:
            if not self.changed.wait_for(lambda: len(self.said[number]) == self.size or self.failed, PATIENCE):
                raise TimeoutError(f"not all ranks came to exchange {number}: {sorted(self.said[number])}")
            if len(self.said[number]) < self.size:
                raise ConnectionError(f"ranks {self.failed} have failed")
            return [self.said[number][rank] for rank in range(self.size)]


class ThreadRanks(Ranks):
    """One of several ranks that are threads."""

    overlaps = True

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self.size = rank, meeting.size
        self.names = [f"rank {other}" for other in range(self.size)]
        self.meeting = meeting
        self.talks, self.sums = 0, 0
        self.begun: list[np.ndarray] = []

    def gather(self, value):
        self.talks += 1
        self.meeting.put(("talk", self.talks), self.rank, deepcopy(value))
        return deepcopy(self.meeting.all_of(("talk", self.talks)))

    def from_first(self, make):
        result, error = None, None
        if self.is_first:
            try:
                result = make()
            except InputError as caught:
                error = caught
        said, error = self.gather((result, error))[0]
        if error is not None:
            raise error
        return result if self.is_first else said

    def any(self, flag):
        return any(self.gather(flag))

    def sum(self, numbers):
        return sum(self.gather(numbers.copy()))

    def broadcast(self, arrays):
        for own, first in zip(arrays, self.gather([array.copy() for array in arrays])[0], strict=True):
            own[...] = first

    def start_sum(self, array):
        self.begun.append(array)
        self.sums += 1
        self.meeting.put(("sum", self.sums), self.rank, array.copy())
        return _ThreadSum(self, self.sums, array)


class _ThreadSum(Sum):
    def __init__(self, ranks: ThreadRanks, number: int, array: np.ndarray) -> None:
        self.ranks, self.number, self.array = ranks, number, array

    def wait(self) -> None:
        parts = self.ranks.meeting.all_of(("sum", self.number))
        assert len({part.shape for part in parts}) == 1, "ranks sum different arrays"
        self.array[...] = sum(parts)


def together(size: int, body: Callable[[Ranks], Any]) -> list[Any]:
    """Call a function in as many ranks, and give what each returns; raise what the first one to fail raised."""
    meeting = Meeting(size)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = body(ThreadRanks(rank, meeting))
        except BaseException as error:
            errors.append(error)
            with meeting.changed:
                meeting.failed.add(rank)
                meeting.changed.notify_all()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results

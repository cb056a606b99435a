"""Threads that share one computation: ranges of rows, or shards of a batch, side by side.

NumPy and compiled kernels let go of Python's lock while they compute, so plain threads use all cores. Each computes
with one BLAS thread: more would only wait for each other. How the work is split depends on the number of threads alone,
never on who is faster, so the same number gives the same bits.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import cache
from itertools import accumulate, pairwise
from typing import Any, TypeVar

T = TypeVar("T")

THREAD_VARIABLES = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""The variables of the environment that set the number of threads; the smallest counts."""

# A thread takes some 50 µs to take over: about as long as it computes on so many numbers.
LEAST_WORK = 2**16

_inside = ContextVar("_inside", default=False)  # whether this code is a thread's share already


_sharing = [1]  # how many processes share the cores


def affinity() -> frozenset[int]:
    """Give the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def core_count() -> int:
    """Count the cores that this process may use."""
    return len(affinity())


@cache
def thread_count() -> int:
    """Count the threads to compute with: one for each core, or what the environment asked for at the start."""
    asked = [int(os.environ[name]) for name in THREAD_VARIABLES if os.environ.get(name, "").isdecimal()]
    return max(1, min([core_count() // _sharing[0], *asked]))


def share_cores(processes: int) -> None:
    """Leave to each of several processes that compute on the same cores its part of them: before the first computation.

    Args:
        processes: how many they are, this one among them.
    """
    _sharing[0] = processes
    thread_count.cache_clear()
    if processes > 1:
        _blas_controller().limit(limits=thread_count(), user_api="blas")


def run_together(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Run one task a thread, the first one in this thread, and give their results in order.

    A task that fails lets the others end; then its exception is raised. Tasks of a task run one after the other.
    """
    if _inside.get():
        return [task() for task in tasks]
    with one_blas_thread():
        futures = [_pool().submit(copy_context().run, _as_share, task) for task in tasks[1:]]
        try:
            first = copy_context().run(_as_share, tasks[0])
        finally:
            for future in futures:
                future.exception()
        return [first, *(future.result() for future in futures)]


def over_ranges(body: Callable[[int, int], T], size: int, work: int) -> list[T]:
    """Call body(start, stop) for ranges that make up 0..size, one a thread where that pays, and give the results.

    Args:
        body: computes its range. size: of the whole.
        work: numbers to go through in all; little work, or a thread's share of other work, is not split.
    """
    threads = 1 if _inside.get() else min(thread_count(), size, work // LEAST_WORK)
    if threads < 2:
        return [body(0, size)]
    edges = [size * i // threads for i in range(threads + 1)]
    return run_together([_share(body, start, stop) for start, stop in pairwise(edges)])


def over_items(body: Callable[[T], object], items: Sequence[T], sizes: Sequence[int]) -> None:
    """Call body(item) for every item; each thread takes items that follow each other, of about the same size in all.

    Args:
        body: handles an item. items: in any order. sizes: numbers to go through for each.
    """
    ends = [0, *accumulate(max(size, 1) for size in sizes)]

    def take(start: int, stop: int) -> None:
        for item, place in zip(items, ends, strict=False):
            if start <= place < stop:
                body(item)

    over_ranges(take, ends[-1], ends[-1])


def _share(body: Callable[[int, int], T], start: int, stop: int) -> Callable[[], T]:
    return lambda: body(start, stop)


def _as_share(task: Callable[[], T]) -> T:
    _inside.set(True)
    return task()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, thread_count() - 1), thread_name_prefix="minifocal")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


class _Blas:
    """BLAS, held at one thread as long as anyone asks for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holders = 0
        self.limit: Any = None

    def hold(self) -> None:
        with self.lock:
            if self.holders == 0:
                self.limit = _blas_controller().limit(limits=1, user_api="blas")
            self.holders += 1

    def let_go(self) -> None:
        with self.lock:
            self.holders -= 1
            if self.holders == 0:
                self.limit.restore_original_limits()


_blas = _Blas()


@cache
def _blas_controller() -> Any:
    from threadpoolctl import ThreadpoolController  # imported where used: it looks through all loaded libraries

    return ThreadpoolController()


def blas_kernels() -> list[str]:
    """Name the processors that the loaded BLAS libraries chose their kernels for."""
    return [str(library.get("architecture", "any")) for library in _blas_controller().select(user_api="blas").info()]


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let BLAS compute each product with one thread, and give its threads back afterwards."""
    _blas.hold()
    try:
        yield
    finally:
        _blas.let_go()


def shards(count: int, size: int) -> list[list[slice]]:
    """Share out 0..count: for each thread a list of slices, of at most `size` each and as equal as can be."""
    if count == 0:
        return []
    threads = min(thread_count(), count)
    rounds = -(-count // (threads * size))
    edges = [count * i // (threads * rounds) for i in range(threads * rounds + 1)]
    slices = [slice(start, stop) for start, stop in pairwise(edges) if start < stop]
    return [slices[i * rounds : (i + 1) * rounds] for i in range(threads)]

"""Memory that is used again.

Asking the system for a large array costs as much as computing with it: each page is cleared when it is first touched.
A network asks for the same sizes in every step, so blocks whose arrays are gone are kept for the next ones.
"""

import threading
from collections import OrderedDict
from contextlib import suppress
from math import prod

import numpy as np

LINE = 64  # bytes of a cache line, where blocks begin
SMALL = 2**13  # bytes; below, NumPy's own allocation is faster
IDLE_LIMIT = 2**30  # bytes of unused blocks that are kept; beyond, those unused for longest are given back


class _Block:
    """A piece of memory as an array takes it (`__array_interface__`); it returns home with the array's last view."""

    def __init__(self, home: "Workspace", memory: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.home, self.memory = home, memory
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": dtype.str,
            "data": (memory.ctypes.data, False),
        }

    def __del__(self) -> None:
        self.home.put_back(self.memory)


class Workspace:
    """Unused blocks by size."""

    def __init__(self, idle_limit: int = IDLE_LIMIT) -> None:
        self.idle_limit = idle_limit
        self.idle_bytes = 0
        self.idle: OrderedDict[int, list[np.ndarray]] = OrderedDict()
        # A block may return at any moment of the thread that takes one: the lock lets the same thread in twice.
        self.lock = threading.RLock()

    def take(self, size: int) -> np.ndarray:
        """Give a block of `size` bytes, with anything in it."""
        with self.lock, suppress(KeyError, IndexError):  # none of that size, or none any more
            memory = self.idle[size].pop()
            self.idle_bytes -= size
            self.idle[size] = self.idle.pop(size)  # the size that was used last
            return memory
        memory = np.empty(size + LINE, dtype=np.uint8)
        start = -memory.ctypes.data % LINE
        return memory[start : start + size]

    def put_back(self, memory: np.ndarray) -> None:
        """Keep a block for the next who asks for its size."""
        with self.lock:
            self.idle.setdefault(memory.nbytes, []).append(memory)
            self.idle_bytes += memory.nbytes
            while self.idle_bytes > self.idle_limit:
                size, blocks = next(iter(self.idle.items()))
                if blocks:
                    blocks.pop()
                    self.idle_bytes -= size
                if not blocks:
                    del self.idle[size]


_workspace = Workspace()


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Make an array with anything in it, of memory that was used before where there is some."""
    size = prod(shape) * dtype.itemsize
    if size < SMALL:
        return np.empty(shape, dtype)
    return np.asarray(_Block(_workspace, _workspace.take(size), shape, dtype))


def empty_like(array: np.ndarray) -> np.ndarray:
    """Make an array of the shape and dtype of another, with anything in it, its elements in order."""
    return empty(array.shape, array.dtype)

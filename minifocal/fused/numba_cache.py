"""Compiled kernels on disk, as Numba keeps them, with two gaps closed.

Numba asks only whether the file of a kernel has changed, not those of the functions that it calls; here any change in
`fused/` compiles all kernels anew. And of two processes that compile a kernel at the same time, one for float32 and one
for float64, each could later take the other's code for its own; here one after the other reads and writes.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from numba.core.caching import FunctionCache, IndexDataCacheFile

from minifocal.functional import activations

LOCK = "minifocal-kernels.lock"


class KernelCache(FunctionCache):
    """The cache of one kernel's compiled versions."""

    def __init__(self, function: Any) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        index: Any = IndexDataCacheFile
        self._cache_file = index(self.cache_path, self._impl.filename_base, source_stamp=_stamp())

    def load_overload(self, signature: Any, context: Any) -> Any:
        """Give a compiled version that is kept, or None."""
        with suppress(OSError), _lock(Path(self.cache_path)):
            return super().load_overload(signature, context)  # type: ignore[no-untyped-call]
        return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep a compiled version, where the folder can be written to and locked."""
        with suppress(OSError), _lock(Path(self.cache_path)):
            super().save_overload(signature, compiled)  # type: ignore[no-untyped-call]


@cache
def _stamp() -> str:
    """What the code of all kernels comes from, in short."""
    files = [*sorted(Path(__file__).parent.glob("*.py")), Path(activations.__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock against other processes, on systems that have such locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

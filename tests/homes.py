"""Where tests compute: NumPy's arrays, a GPU's, and those of a GPU made of a C++ compiler."""

import ctypes
import sys
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_host import HostGpu, HostRecorder
from strict_array import StrictArray

from minifocal.arrays import as_numpy, import_cupy
from minifocal.fused import gpu as device
from minifocal.fused import gpu_calls


def leaves(tree: Any) -> list[Any]:
    """Everything in tuples of tuples."""
    return [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, list | tuple) else [tree]


def arrays(tree: Any) -> list[Any]:
    return [leaf for leaf in leaves(tree) if hasattr(leaf, "strides")]


def map_arrays(function: Any, tree: Any) -> Any:
    """Exchange every array in tuples of tuples."""
    if isinstance(tree, list | tuple):
        parts = [map_arrays(function, part) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return function(tree) if hasattr(tree, "strides") else tree


def on_the_clock(run: Callable[[], object]) -> float:
    """Call a function; give the seconds that it took."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class Home:
    """NumPy's arrays: nothing moves.

    Attributes:
        device: as `get_ops` takes it.
    """

    device = "cpu"

    def put(self, tree: Any) -> Any:
        """Bring all arrays in a tree here, laid out in memory as they are."""
        return tree

    def get(self, tree: Any) -> Any:
        """Bring all arrays in a tree to the host."""
        return tree


HOST = Home()


class HostCompiled(Home):
    """Arrays of the stand-in, on which kernels that were compiled for the host run."""

    device = "cuda"

    def __init__(self, gpu: HostGpu | None = None) -> None:
        self.gpu = gpu or HostGpu()
        self.library = self.gpu.array_library

    def put(self, tree: Any) -> Any:
        return map_arrays(lambda array: StrictArray(array, self.library), tree)

    def get(self, tree: Any) -> Any:
        return map_arrays(lambda array: array._host, tree)

    def take_the_place_of_cupy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let launches and matrix products go to the host."""
        monkeypatch.setattr(device, "launch", self.gpu.launch)
        monkeypatch.setattr(device, "gemm", self.gpu.gemm)
        monkeypatch.setattr(device, "Recorder", lambda: HostRecorder(self.library))
        monkeypatch.setattr(device, "elapsed", on_the_clock)
        monkeypatch.setattr(device, "pool_bytes", lambda: 2**20)
        monkeypatch.setattr(gpu_calls, "BLOCKS", 5)  # so that few rows make shares of several, the last one shorter

    def become_a_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let `device="cuda"` be this home, by way of a CuPy that has as much as the package asks of it."""
        self.take_the_place_of_cupy(monkeypatch)
        runtime = SimpleNamespace(
            CUDARuntimeError=RuntimeError,
            getDeviceCount=lambda: 1,
            getDeviceProperties=lambda index: {"name": b"kernels for the host"},
            driverGetVersion=lambda: 13000,
        )
        cupy = ModuleType("cupy")
        vars(cupy).update(asarray=self.library.asarray, __version__="none")
        vars(cupy)["cuda"] = SimpleNamespace(runtime=runtime, Device=_OnlyDevice)
        monkeypatch.setitem(sys.modules, "cupy", cupy)


class _OnlyDevice:
    """Stands for cupy.cuda.Device."""

    def __init__(self, number: int) -> None:
        assert number == 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def use(self) -> None:
        pass


class Gpu(Home):
    """CuPy's arrays."""

    device = "cuda"

    def put(self, tree: Any) -> Any:
        return map_arrays(self._put, tree)

    def get(self, tree: Any) -> Any:
        return map_arrays(as_numpy, tree)

    @staticmethod
    def _put(array: np.ndarray) -> Any:
        cupy = import_cupy()
        start, stop = np.lib.array_utils.byte_bounds(array)
        memory = cupy.asarray(np.ctypeslib.as_array((ctypes.c_uint8 * (stop - start)).from_address(start)))
        first = memory.data + (array.ctypes.data - start)
        return cupy.ndarray(array.shape, array.dtype, memptr=first, strides=array.strides)

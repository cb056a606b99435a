"""What CuPy does for a GPU: kernels compiled and launched, matrices multiplied, work recorded and replayed, time taken.

The operations are in `gpu_ops`; this is the one file beside `arrays` that imports CuPy.
"""

import ctypes
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.resources import files
from typing import Any
from weakref import WeakSet

import numpy as np

from minifocal.arrays import Array, import_cupy

SOURCES = ("kernels.cuh", "kernels.cu", "kernels_conv.cu", "kernels_update.cu")
OPTIONS = ("-std=c++17",)
NULL = np.uintp(0)
"""A null pointer, as an argument of a kernel."""

COMPILED_ANEW = 0.2  # seconds; a kernel that lies in CuPy's cache on disk is there sooner


def read_source() -> str:
    """Give the source of all kernels, one text: NVRTC, which compiles it, knows no folders."""
    folder = files("minifocal.fused")
    return "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in SOURCES)


def launch(kernel: str, grid: tuple[int, ...], block: tuple[int, ...], *arguments: Any) -> None:
    """Put a kernel's work into the current stream.

    Args:
        kernel: its name with the arguments of its template, such as "gelu<float, 4>".
        grid: blocks along x, y, z. block: threads of each. No blocks, no work.
        arguments: arrays on the current device, and NumPy's scalars of the very types in the source.
    """
    if 0 not in grid:
        _compile(kernel, import_cupy().cuda.Device().id)(grid, block, arguments)


@cache
def _compile(kernel: str, device: int) -> Any:
    """Compile one kernel for a device. CuPy keeps the code on disk."""
    start = time.perf_counter()
    module = import_cupy().RawModule(code=read_source(), options=OPTIONS, name_expressions=(kernel,))
    function = module.get_function(kernel)
    if time.perf_counter() - start > COMPILED_ANEW:
        _say_that_kernels_are_compiled()
    return function


@cache
def _say_that_kernels_are_compiled() -> None:
    logging.getLogger("minifocal").warning("minifocal: compiling kernels, once for this machine")


# Matrix products. CuPy's own refuse to be captured in a graph, so cuBLAS is called by its C interface.

_TYPES = {"float32": 0, "float64": 1, "float16": 2, "uint16": 14}  # cudaDataType; bfloat16 comes as its bits, uint16
_COMPUTE_FLOAT32, _COMPUTE_FLOAT64, _COMPUTE_TF32 = 68, 70, 77  # cublasComputeType_t
_DEFAULT_ALGORITHM = -1
WORKSPACE_BYTES = 2**25  # what NVIDIA advises for its largest GPUs


def multiply(
    a: Array, b: Array, out: Array, *, transpose_a: bool = False, transpose_b: bool = False, tf32: bool = False
) -> None:
    """Set out = a @ b, either of them transposed first; sums are made in the type of out.

    Args:
        a, b: matrices of one dtype, in C order: float32, float64, float16, or uint16, the bits of bfloat16.
        out: a matrix in C order: float64 where a and b are, else float32.
        tf32: whether operands in float32 may be rounded to 10 bits after the point.
    """
    m, n = out.shape
    k = a.shape[0] if transpose_a else a.shape[1]
    scalar: Any = ctypes.c_double if out.dtype.name == "float64" else ctypes.c_float
    compute = _COMPUTE_FLOAT64 if out.dtype.name == "float64" else _COMPUTE_TF32 if tf32 else _COMPUTE_FLOAT32
    one, zero = ctypes.byref(scalar(1.0)), ctypes.byref(scalar(0.0))
    kind, out_kind = _TYPES[a.dtype.name], _TYPES[out.dtype.name]
    # cuBLAS counts along columns. In its eyes a matrix in C order is its transpose, so it is asked for
    # out.T = b.T @ a.T, and sees b.T as it lies in memory.
    gemm(
        int(transpose_b),
        int(transpose_a),
        n,
        m,
        k,
        one,
        b.data.ptr,
        kind,
        b.shape[1],
        a.data.ptr,
        kind,
        a.shape[1],
        zero,
        out.data.ptr,
        out_kind,
        n,
        compute,
        _DEFAULT_ALGORITHM,
    )


def gemm(*arguments: Any) -> None:
    """Call cublasGemmEx in the current stream, with all its arguments but the handle.

    It gets room to work in that is always the same: else it would take some for itself, and in a recorded step perhaps
    another way to sum than outside.
    """
    cupy = import_cupy()
    handle = cupy.cuda.device.get_cublas_handle()
    library = _cublas(handle)
    _check(library.cublasSetStream_v2(handle, cupy.cuda.get_current_stream().ptr))
    _check(library.cublasSetWorkspace_v2(handle, _workspace(cupy.cuda.Device().id).ptr, WORKSPACE_BYTES))
    _check(library.cublasGemmEx(handle, *arguments))


@cache
def _workspace(device: int) -> Any:
    return import_cupy().cuda.alloc(WORKSPACE_BYTES)


@cache
def _cublas(handle: int) -> Any:
    """Load the cuBLAS that CuPy has loaded, and let each number pass through its interface as what it is."""
    # CuPy imports it with the first handle.
    from cupy_backends.cuda.libs import cublas

    major = cublas.getVersion(handle) // 10000
    library = ctypes.CDLL(f"cublas64_{major}.dll" if os.name == "nt" else f"libcublas.so.{major}")
    number, pointer = ctypes.c_int, ctypes.c_void_p
    library.cublasSetStream_v2.argtypes = [pointer, pointer]
    library.cublasSetWorkspace_v2.argtypes = [pointer, pointer, ctypes.c_size_t]
    library.cublasGemmEx.argtypes = [
        *(pointer, number, number, number, number, number),  # handle, transpositions, sizes
        *(pointer, pointer, number, number, pointer, number, number),  # alpha, A with type and pitch, B likewise
        *(pointer, pointer, number, number, number, number),  # beta, C with type and pitch, compute type, algorithm
    ]
    return library


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"cuBLAS reports status {status} (cublasStatus_t)")


class Recorder:
    """Records what a function does on the device, and replays it: one launch in place of hundreds.

    What is recorded runs in a stream of its own, which waits for the work before it, and for which the work after it
    waits; and in memory that nothing else uses, since a replay writes to the same places.
    """

    def __init__(self) -> None:
        cupy = import_cupy()
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.pool = cupy.cuda.MemoryPool()
        _recorders.add(self)
        self.kept: list[Any] = []

    @contextmanager
    def in_stream(self) -> Iterator[None]:
        """Put what is done here into the recorder's stream."""
        around = import_cupy().cuda.get_current_stream()
        self.stream.wait_event(around.record())
        with self.stream:
            yield
        around.wait_event(self.stream.record())

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """Call a function twice: once to prepare all that it needs, once to record it.

        Nothing may come from the host or go there meanwhile. Memory that CuPy keeps for later is given back first: the
        recording takes as much again.

        Returns:
            what the function returns, arrays that each replay fills anew; and the function that replays, in the
            current stream.
        """
        import_cupy().get_default_memory_pool().free_all_blocks()
        with self.in_stream(), import_cupy().cuda.using_allocator(self.pool.malloc):
            function()
            self.stream.begin_capture()
            _kept.append(self.kept)
            try:
                result = function()
            except BaseException:
                with suppress(Exception):  # what has been recorded is of no use; the first error is what counts
                    self.stream.end_capture()
                raise
            finally:
                _kept.pop()
            graph = self.stream.end_capture()
        return result, graph.launch


_recorders: WeakSet[Recorder] = WeakSet()
_kept: list[list[Any]] = []


def keep(array: Array) -> None:
    """Keep an array that is older than a recording alive for as long as the recorder that is at work, if one is."""
    if _kept:
        _kept[-1].append(array)


# Several processes, each with a device of its own


def has_nccl() -> bool:
    """Whether CuPy has NCCL, which sums over devices."""
    return bool(import_cupy().cuda.nccl.available)


class Nccl:
    """Sums over the devices of several processes, in a stream of their own, beside the computation.

    Args:
        size: how many processes there are; MPI has started them. rank: of this one.
    """

    def __init__(self, size: int, rank: int) -> None:
        from cupyx.distributed import init_process_group

        self.group = init_process_group(size, rank, use_mpi=True)
        self.stream = import_cupy().cuda.Stream(non_blocking=True)

    def start_sum(self, array: Array) -> None:
        """Begin to sum a contiguous array in place, once what the current stream has to do so far is done."""
        self.stream.wait_event(import_cupy().cuda.get_current_stream().record())
        self.group.all_reduce(array, array, stream=self.stream)

    def finish(self) -> None:
        """Let what the current stream does from now on wait for all sums that have begun."""
        import_cupy().cuda.get_current_stream().wait_event(self.stream.record())


def synchronize() -> None:
    """Wait until all work of the current stream is done."""
    import_cupy().cuda.get_current_stream().synchronize()


# Measuring


def elapsed(run: Callable[[], object]) -> float:
    """Call a function; give the seconds that its work in the current stream took on the device."""
    cupy = import_cupy()
    stream = cupy.cuda.get_current_stream()
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    start.record(stream)
    run()
    stop.record(stream)
    stop.synchronize()
    return float(cupy.cuda.get_elapsed_time(start, stop)) / 1000.0


def pool_bytes() -> int:
    """Count the bytes that CuPy has of the device's memory: its pools keep what is given back, so this is the peak."""
    pools = [import_cupy().get_default_memory_pool(), *(recorder.pool for recorder in _recorders)]
    return sum(int(pool.total_bytes()) for pool in pools)

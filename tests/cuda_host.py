"""A GPU made of a C++ compiler: the kernels of `fused/`, compiled for the CPU, on arrays that refuse NumPy.

`HostGpu` takes the place of `minifocal.fused.gpu`'s way to a device. Each launch works on copies of its arrays between
bands of NaN, in two orders of threads: what reads beside its arrays gets NaN, what writes there is found, and so is a
missing barrier.
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from strict_array import StrictArray, StrictLibrary

from minifocal.fused import gpu

COMPILER = (os.environ.get("CXX") or shutil.which("g++")) if sys.platform == "linux" else None
TYPES, VECTORS, KERNEL_SIZES = ("float", "double"), (1, 4), (1, 3, 5, 7, 9)
BARRIERS = (
    *("column_sums", "row_products", "layer_norm", "layer_norm_backward", "gated_gradient"),
    *("cross_entropy", "squares"),
)
"""Kernels whose threads wait for each other."""
BY_ADDRESS = ("sgd_update", "adamw_update", "scale_gradients")
"""Kernels that change arrays which they find through a table of addresses: there are no copies, so they run once."""
SHIM = Path(__file__).with_name("cuda_host.h")
GUARD = 1 << 14  # bytes around the copy of an array: more than the threads of a block reach
OPTIONS = ["-O1", "-std=c++17", "-fPIC", "-w", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-fsanitize=alignment"]


def instantiations() -> list[str]:
    """Name every kernel for every type and size that the tests launch."""
    numbers = ("gelu", "gelu_tanh", "sigmoid", "sigmoid_backward", "add_bias", "modulate_backward", "global_level")
    rows = ("row_products", "layer_norm", "layer_norm_backward", "gated_gradient")
    plain = (
        *("column_sums", "patches", "patches_backward", "cross_entropy", "cross_entropy_backward"),
        *("sgd_update", "adamw_update", "squares", "scale_gradients"),
    )
    names = ["to_bfloat16"]
    for c_type in TYPES:
        names += [f"{kernel}<{c_type}>" for kernel in plain]
        for V in VECTORS:
            names += [f"{kernel}<{c_type}, {V}>" for kernel in (*numbers, *rows)]
            for k in KERNEL_SIZES:
                names += [f"{kernel}<{c_type}, {V}, {k}>" for kernel in ("focal_level", "depthwise_conv_weight")]
                names += [f"depthwise_conv<{c_type}, {V}, {k}, {turned}>" for turned in ("true", "false")]
    return names


def compile_for_host(source: str, names: list[str]) -> ctypes.CDLL:
    """Compile kernels with the shim, once for all processes."""
    entries = "".join(
        f'    {{"{name}", [](void** a) {{ host::call(&{name}, a); }}, host::count_arguments(&{name}), '
        f"{'true' if name.partition('<')[0] in BARRIERS else 'false'}}},\n"
        for name in names
    )
    text = f"""#include "{SHIM}"
{source}
static const host::Entry entries[] = {{
{entries}    {{nullptr, nullptr, 0, false}}
}};
extern "C" int host_launch(
    const char* name, const unsigned* grid, const unsigned* block, int count, void** arguments, int reversed
) {{
    return host::launch(entries, name, grid, block, count, arguments, reversed);
}}
"""
    assert COMPILER is not None
    import fcntl  # as COMPILER, on Linux only

    key = sha256((text + SHIM.read_text() + COMPILER + str(OPTIONS)).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"minifocal-kernels-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{key}.so"
    lock = folder / f"{key}.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go when this process ends, however it does
        if not library.exists():
            code, compiled, linked = (library.with_suffix(suffix) for suffix in (".cpp", ".o", ".new"))
            code.write_text(text)
            subprocess.run([COMPILER, *OPTIONS, "-c", str(code), "-o", str(compiled)], check=True)
            # Without the options: what the check of alignments calls is in the shim.
            subprocess.run([COMPILER, "-shared", str(compiled), "-o", str(linked)], check=True)
            code.unlink()
            compiled.unlink()
            os.replace(linked, library)
    return ctypes.CDLL(str(library))


class HostGpu:
    """Launches kernels and multiplies matrices on StrictArrays.

    Attributes:
        array_library: of these arrays.
        launched: the kernels that were launched, by name, in order.
    """

    def __init__(self, source: str | None = None, names: list[str] | None = None) -> None:
        source = gpu.read_source() if source is None else source
        self.bounds = {name: int(n) for n, name in re.findall(r"__launch_bounds__\((\d+)\)\s+(\w+)\(", source)}
        self.library = compile_for_host(source, names or instantiations())
        self.array_library = HostLibrary()
        self.launched: list[str] = []

    def launch(self, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], *arguments: Any) -> None:
        """As minifocal.fused.gpu.launch."""
        if 0 in grid:
            return
        self.launched.append(kernel)
        self._note(partial(self._launch, kernel, grid, block, *arguments))
        self._launch(kernel, grid, block, *arguments)

    def _launch(self, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], *arguments: Any) -> None:
        assert all(size >= 1 for size in (*grid, *block)), f"{kernel}: no such launch: {grid}, {block}"
        most = self.bounds.get(kernel.partition("<")[0], 1024)
        assert np.prod(block) <= most, f"{kernel}: more than {most} threads in a block: {block}"
        assert max(grid[1:], default=1) < 2**16, f"{kernel}: too many blocks: {grid}"
        orders = (True,) if kernel.partition("<")[0] in BY_ADDRESS else (False, True)
        results = [self._run(kernel, grid, block, arguments, reverse) for reverse in orders]
        for one, other in zip(results[0], results[-1], strict=True):
            assert one.tobytes() == other.tobytes(), f"{kernel}: another order of threads gives another result"
        for area, content in zip(self._areas(arguments), results[0], strict=True):
            ctypes.memmove(area.start, content.ctypes.data, content.nbytes)

    def gemm(self, *arguments: Any) -> None:
        """As minifocal.fused.gpu.gemm."""
        self._note(partial(self._gemm, *arguments))
        self._gemm(*arguments)

    def _note(self, work: Callable[[], object]) -> None:
        if self.array_library.recording is not None:
            self.array_library.recording.append(work)

    def _gemm(self, *arguments: Any) -> None:
        pointers = {5, 6, 9, 12, 13}  # alpha, A, B, beta, C
        passed = [
            ctypes.c_void_p(value) if n in pointers and isinstance(value, int) else value
            for n, value in enumerate(arguments)
        ]
        status = self.library.cublasGemmEx(None, *passed)
        assert status == 0, f"gemm refuses its arguments: status {status}"

    def _run(self, kernel: str, grid: tuple, block: tuple, arguments: tuple, reverse: bool) -> list[np.ndarray]:
        """Run on copies; give what is in them afterwards."""
        areas = self._areas(arguments)
        copies = [_Guarded(area, number) for number, area in enumerate(areas)]
        held: list[Any] = []
        for argument in arguments:
            if isinstance(argument, StrictArray):
                address = argument.data.ptr
                (copy,) = (c for c in copies if c.area.start <= address < c.area.stop)
                held.append(ctypes.c_void_p(copy.address + address - copy.area.start))
            else:
                assert isinstance(argument, np.generic), f"{kernel}: {argument!r} has no type of C"
                held.append(ctypes.create_string_buffer(argument.tobytes(), argument.nbytes))
        pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(value) for value in held))
        sizes = [(ctypes.c_uint * 3)(*(*size, 1, 1)[:3]) for size in (grid, block)]
        status = self.library.host_launch(kernel.encode(), *sizes, len(held), pointers, int(reverse))
        reason = ["", "is not compiled: add it to instantiations()", "takes another number of arguments", "deadlocks"]
        reason += ["waits at a barrier: add it to BARRIERS", "reads or writes a vector that is not aligned"]
        assert status == 0, f"{kernel} {reason[status]}"
        return [copy.content(kernel) for copy in copies]

    @staticmethod
    def _areas(arguments: tuple) -> list["_Area"]:
        """The stretches of memory that arrays lie in; those that overlap are one."""
        bounds = sorted(np.lib.array_utils.byte_bounds(a._host) for a in arguments if isinstance(a, StrictArray))
        areas: list[_Area] = []
        for start, stop in bounds:
            if areas and start < areas[-1].stop:
                areas[-1].stop = max(areas[-1].stop, stop)
            else:
                areas.append(_Area(start, stop))
        return areas


class _Area:
    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop


class _Guarded:
    """A copy of a stretch of memory between bands of NaN, as far from a multiple of 64 as the original.

    Each has NaN of its own: what is read in the bands of one and written to those of another is seen.
    """

    def __init__(self, area: _Area, number: int) -> None:
        self.area, self.size = area, area.stop - area.start
        self.low_byte = 0xF8 + number % 8  # FF F8 to FF FF, again and again, are all NaN, in every type
        self.memory = np.empty(self.size + 2 * GUARD + 64, dtype=np.uint8)
        self.first = GUARD + (area.start - self.memory.ctypes.data - GUARD) % 64
        self.bands = [self.memory[: self.first], self.memory[self.first + self.size :]]
        self.address = self.memory.ctypes.data + self.first
        for band in self.bands:
            band[...] = self._pattern(band)
        ctypes.memmove(self.address, area.start, self.size)

    def content(self, kernel: str) -> np.ndarray:
        intact = all(np.array_equal(band, self._pattern(band)) for band in self.bands)
        assert intact, f"{kernel} writes outside of its arrays"
        return self.memory[self.first : self.first + self.size]

    def _pattern(self, band: np.ndarray) -> np.ndarray:
        odd = band.ctypes.data % 2
        return _nan_bytes(self.low_byte)[odd : odd + band.size]


@cache
def _nan_bytes(low_byte: int) -> np.ndarray:
    """Bytes that are NaN wherever a number of any type begins, on an even address."""
    return np.tile(np.array([low_byte, 0xFF], dtype=np.uint8), GUARD + 64)


class HostLibrary(StrictLibrary):
    """The stand-in's arrays for a HostGpu: what is not written to is NaN.

    Attributes:
        recording: what has been done since a HostRecorder began, functions to call again; None where there is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recording: list[Callable[[], object]] | None = None

    def run(self, function: Any, *arguments: Any, **options: Any) -> Any:
        """As StrictLibrary.run; a GPU says nothing of overflow."""
        with np.errstate(all="ignore"):
            result = super().run(function, *arguments, **options)
        if self.recording is not None:
            self.recording.append(partial(self._again, result, function, *arguments, **options))
        return result

    def _again(self, result: Any, function: Any, *arguments: Any, **options: Any) -> None:
        """Do it again, and put what comes out where it was the first time."""
        with np.errstate(all="ignore"):
            fresh = super().run(function, *arguments, **options)
        if isinstance(result, StrictArray) and not np.shares_memory(result._host, fresh._host):
            result._host[...] = fresh._host

    def asarray(self, values: Any) -> StrictArray:
        """As StrictLibrary.asarray; nothing comes from the host while work is recorded."""
        assert self.recording is None or isinstance(values, StrictArray), "a recording takes nothing from the host"
        return super().asarray(values)

    def empty(self, shape: Any, dtype: Any = "float64") -> StrictArray:
        """Make an array full of NaN, or of the largest integers."""
        array = np.empty(shape, dtype=dtype)
        array.view(np.uint8)[...] = 0xFF
        return StrictArray(array, self)


class HostRecorder:
    """As minifocal.fused.gpu.Recorder."""

    def __init__(self, library: HostLibrary) -> None:
        self.library = library

    @contextmanager
    def in_stream(self) -> Iterator[None]:
        """There is one stream only."""
        yield

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """Call a function twice, the second time noting what it does."""
        function()
        self.library.recording, sent = [], len(self.library.to_host)
        try:
            result = function()
            work = self.library.recording
        finally:
            self.library.recording = None
        assert len(self.library.to_host) == sent, "a recording sends nothing to the host"

        def replay() -> None:
            for step in work:
                step()

        return result, replay

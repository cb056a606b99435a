"""What `fused.gpu` asks of CuPy, on a CuPy that notes it, and of cuBLAS, on one that is made for the host."""

import ctypes
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from weakref import WeakSet

import numpy as np
import pytest

from minifocal.fused import gpu

STREAM = 4242  # the address of the current stream


class Events(list):
    """What was asked, in order."""

    def note(self, *words):
        self.append(" ".join(map(str, words)))


@pytest.fixture
def asked(monkeypatch):
    """Put a CuPy in place that notes; give the notes."""
    events = Events()

    class Event:
        def __init__(self, name="event"):
            self.name = name

        def record(self, stream):
            events.note("record on", stream.name)

        def synchronize(self):
            events.note("wait for event")

    class Stream:
        def __init__(self, name="own", non_blocking=False):
            self.name, self.ptr = name, STREAM
            if name == "own":
                assert non_blocking, "the stream of a recording must not wait for the default one"

        def record(self):
            events.note("record on", self.name)
            return Event(f"event of {self.name}")

        def wait_event(self, event):
            events.note(self.name, "waits for", event.name)

        def begin_capture(self):
            events.note("begin on", self.name)

        def end_capture(self):
            events.note("end on", self.name)
            return SimpleNamespace(launch=lambda: events.note("launch graph"))

        def __enter__(self):
            events.note("enter", self.name)

        def __exit__(self, *_):
            events.note("leave", self.name)

    class Pool:
        def malloc(self, size):
            raise AssertionError

        def total_bytes(self):
            return 300

        def free_all_blocks(self):
            events.note("free")

    @contextmanager
    def using_allocator(malloc):
        events.note("private memory")
        yield
        events.note("common memory")

    class Module:
        def __init__(self, code, options, name_expressions):
            assert "__global__" in code
            assert options == ("-std=c++17",)
            (self.name,) = name_expressions
            events.note("compile", self.name)

        def get_function(self, name):
            assert name == self.name
            return lambda grid, block, arguments: events.note("launch", name, grid, block, arguments)

    default, pool = Stream("default"), Pool()
    cupy = ModuleType("cupy")
    cupy.RawModule, cupy.get_default_memory_pool = Module, lambda: pool
    cupy.cuda = SimpleNamespace(
        Device=lambda: SimpleNamespace(id=0),
        Stream=Stream,
        Event=Event,
        MemoryPool=Pool,
        using_allocator=using_allocator,
        alloc=lambda size: events.note("take", size) or SimpleNamespace(ptr=512),
        get_current_stream=lambda: default,
        get_elapsed_time=lambda start, stop: 250.0,
        device=SimpleNamespace(get_cublas_handle=lambda: 77),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(gpu, "_recorders", WeakSet())
    kept = (gpu._compile, gpu._cublas, gpu._workspace)
    for function in kept:
        function.cache_clear()
    yield events
    for function in kept:
        function.cache_clear()


def test_a_kernel_is_compiled_once_and_launched_as_often_as_asked(asked):
    for _ in range(2):
        gpu.launch("gelu<float, 4>", (3,), (256,), 1, 2)
    gpu.launch("gelu<float, 4>", (3, 0), (256,), 1, 2)  # no blocks, no work
    assert asked == ["compile gelu<float, 4>", *["launch gelu<float, 4> (3,) (256,) (1, 2)"] * 2]


def test_compiling_is_said_once_where_it_takes_its_time(asked, monkeypatch, caplog):
    gpu._say_that_kernels_are_compiled.cache_clear()
    now = iter(range(100))
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: next(now))
    for name in ("gelu<float, 1>", "gelu<float, 4>"):
        gpu.launch(name, (1,), (1,))
    assert [record.message for record in caplog.records] == ["minifocal: compiling kernels, once for this machine"]


def test_a_recording_is_rehearsed_in_its_own_stream_and_memory(asked):
    recorder = gpu.Recorder()
    result, replay = recorder.record(lambda: asked.note("work") or "result")
    assert result == "result"
    assert asked == [
        "free", "record on default", "own waits for event of default", "enter own", "private memory", "work",
        "begin on own", "work",
        "end on own", "common memory", "leave own", "record on own", "default waits for event of own",
    ]  # fmt: skip
    asked.clear()
    with recorder.in_stream():
        replay()
    assert asked[2:4] == ["enter own", "launch graph"]
    assert asked[-1] == "default waits for event of own"


def test_a_recording_that_fails_says_why_and_ends(asked):
    recorder, calls = gpu.Recorder(), []

    def work():
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        recorder.record(work)
    assert "end on own" in asked
    gpu.keep("nothing is recorded any more")
    assert recorder.kept == []


def test_what_is_older_than_a_recording_is_kept_with_it(asked):
    recorder = gpu.Recorder()
    recorder.record(lambda: gpu.keep("table"))
    assert recorder.kept == ["table"]


def test_time_and_memory(asked):
    assert gpu.elapsed(lambda: asked.note("work")) == 0.25
    assert asked == ["record on default", "work", "record on default", "wait for event"]
    recorder = gpu.Recorder()
    assert gpu.pool_bytes() == 600  # the default pool's and the recorder's
    del recorder
    assert gpu.pool_bytes() == 300


@pytest.fixture
def cublas(asked, host_compiled, monkeypatch):
    """The shim's gemm behind the names of cuBLAS."""
    backend = ModuleType("cupy_backends.cuda.libs")
    backend.cublas = SimpleNamespace(getVersion=lambda handle: 130200)
    for name in ("cupy_backends", "cupy_backends.cuda"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs", backend)
    loaded, load = [], ctypes.CDLL

    def pretend(name):
        loaded.append(name)
        return load(host_compiled.gpu.library._name)

    monkeypatch.setattr(ctypes, "CDLL", pretend)
    return loaded


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_products_pass_through_the_interface_of_cublas(transpose_a, transpose_b, dtype, cublas, asked, host_compiled):
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((3, 5)).astype(dtype), rng.standard_normal((5, 7)).astype(dtype)
    stored = [np.ascontiguousarray(x.T if turned else x) for x, turned in ((a, transpose_a), (b, transpose_b))]
    out = host_compiled.library.empty((3, 7), dtype="float64" if dtype == "float64" else "float32")
    gpu.multiply(*host_compiled.put(stored), out, transpose_a=transpose_a, transpose_b=transpose_b)
    want = a.astype("float64") @ b.astype("float64")
    np.testing.assert_allclose(host_compiled.get(out), want, rtol=0, atol=40 * np.finfo(out.dtype).eps)
    assert cublas == ["libcublas.so.13"]
    assert asked == [f"take {2**25}"]


def test_an_error_of_cublas_is_raised(cublas):
    with pytest.raises(RuntimeError, match=r"^cuBLAS reports status 7 "):
        gpu.gemm(0, 0, 3, 3, 3, None, None, 0, 2, None, 0, 3, None, None, 0, 3, 68, -1)

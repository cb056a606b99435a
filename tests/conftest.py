"""What the tests share: the array libraries they run on, and how Hypothesis draws."""

import os
import signal
from types import ModuleType

# Before NumPy is loaded: the tests run in several processes, whose BLAS threads would wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest
from cuda_host import COMPILER
from homes import Gpu, Home, HostCompiled
from hypothesis import settings

from minifocal.arrays import check_device, get_array_module, to_device
from minifocal.errors import InputError

# A shell lets what runs in its background ignore Ctrl-C; here some tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, and no database of old ones: a failure can be repeated anywhere.
settings.register_profile("minifocal", deadline=None, derandomize=True, max_examples=25, database=None)
settings.load_profile("minifocal")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-gpu", action="store_true", help="fail the tests that need a GPU where there is none")
    parser.addoption(
        "--require-browser", action="store_true", help="fail the tests that need Chromium where there is none"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test that takes `xp`, or `home`, twice; without a GPU the second one is skipped."""
    for fixture, first, scope in (("xp", "cpu", "session"), ("home", "host", "function")):
        if fixture in metafunc.fixturenames:
            skip = [] if metafunc.config.getoption("--require-gpu") or _has_gpu() else [pytest.mark.skip("no GPU")]
            metafunc.parametrize(fixture, [first, pytest.param("cuda", marks=skip)], indirect=True, scope=scope)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests beside other libraries out unless they are asked for; the first one is skipped, for all."""
    if "peers" in config.getoption("-m"):
        return
    peers = [item for item in items if item.get_closest_marker("peers")]
    if peers:
        text = f'{len(peers)} tests beside torch, transformers and timm: run them with "pytest -m peers"'
        peers[0].add_marker(pytest.mark.skip(text))
        config.hook.pytest_deselected(items=peers[1:])
        items[:] = [item for item in items if item not in peers[1:]]


@pytest.fixture(scope="session")
def xp(request: pytest.FixtureRequest) -> ModuleType:
    """The array library: NumPy, then CuPy."""
    return get_array_module(to_device(np.zeros(1), request.param))


@pytest.fixture(scope="session")
def host_compiled() -> HostCompiled:
    """The kernels of a GPU, compiled for the host."""
    if COMPILER is None:
        pytest.skip("no C++ compiler: CXX names one")
    return HostCompiled()


@pytest.fixture
def cuda_on_host(host_compiled: HostCompiled, monkeypatch: pytest.MonkeyPatch) -> HostCompiled:
    """Let `device="cuda"` be the kernels that are compiled for the host."""
    host_compiled.become_a_device(monkeypatch)
    return host_compiled


@pytest.fixture
def home(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Where the table "cuda" computes: on arrays for kernels that are compiled for the host, then on a GPU."""
    if request.param == "cuda":
        return Gpu()
    compiled: HostCompiled = request.getfixturevalue("host_compiled")
    compiled.take_the_place_of_cupy(monkeypatch)
    return compiled


def _has_gpu() -> bool:
    try:
        check_device("cuda")
    except InputError:
        return False
    return True

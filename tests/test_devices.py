"""What is said where there is no GPU, no CuPy, or a CuPy for another driver; and what a device is called."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from minifocal.arrays import check_device, describe_gpus, use_device
from minifocal.errors import InputError
from minifocal.models.focalnet import FocalNet


class CUDARuntimeError(Exception):
    pass


class Used:
    """Stands for cupy.cuda.Device."""

    numbers: list[int] = []  # noqa: RUF012  # one list for all is the point

    def __init__(self, number):
        self.number = number

    def use(self):
        self.numbers.append(self.number)


@pytest.fixture
def install(monkeypatch):
    """Put a CuPy in place with some GPUs, for a version of CUDA, above a driver for another (0: none)."""

    def put(gpus=0, built_for=13020, driver=13000, error=None):
        def count():
            if error:
                raise CUDARuntimeError(error)
            return gpus

        cupy = ModuleType("cupy")
        cupy.__version__ = "14.2.0"
        cupy.cuda = SimpleNamespace(
            Device=Used,
            runtime=SimpleNamespace(
                CUDARuntimeError=CUDARuntimeError,
                getDeviceCount=count,
                runtimeGetVersion=lambda: built_for,
                driverGetVersion=lambda: driver,
                getDeviceProperties=lambda index: {"name": f"GPU {index}".encode()},
            ),
        )
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        Used.numbers.clear()

    return put


INSUFFICIENT = "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version"


def says(text):
    return pytest.raises(InputError, match=text)


def test_without_cupy_the_extras_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with says(r'^device "cuda" needs CuPy, which is not installed; install "minifocal\[cuda12\]" or'):
        FocalNet.build(init="zeros", device="cuda")


def test_a_cupy_that_does_not_load_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)

    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "cupy":
                raise ImportError("libnvrtc.so.12: cannot open\nmore")

    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with says(r"^CuPy is installed but cannot be loaded: libnvrtc.so.12: cannot open; reinstall"):
        check_device("cuda")


def test_without_a_driver_that_is_said(install):
    install(driver=0, error=INSUFFICIENT)
    with says('^device "cuda" needs the driver of an NVIDIA GPU, and there is none; use device "cpu"$'):
        check_device("cuda")


def test_a_cupy_for_a_newer_driver_names_the_extra_for_this_one(install):
    install(driver=12080, error=INSUFFICIENT)
    with says(
        r"^CuPy is built for CUDA 13, but the driver supports CUDA 12 at most; uninstall cupy-cuda13x and "
        r'install "minifocal\[cuda12\]", or bring the driver up to date$'
    ):
        check_device("cuda:1")


def test_a_driver_without_a_gpu_sees_none(install):
    install(error="cudaErrorNoDevice: no CUDA-capable device is detected")
    with says("^device 'cuda' is not present: CuPy sees 0 GPUs; use device \"cpu\"$"):
        check_device("cuda")


def test_another_error_is_passed_on_in_one_line(install):
    install(error="cudaErrorDevicesUnavailable:\nbusy")
    with says("^CuPy cannot reach a GPU: cudaErrorDevicesUnavailable: busy; see minifocal doctor$"):
        check_device("cuda")


def test_devices_are_numbered(install):
    install(gpus=2)
    assert [check_device(name) for name in ("cpu", "cuda", "cuda:0", "cuda:1")] == [None, 0, 0, 1]
    with says("^device 'cuda:2' is not present: CuPy sees 2 GPUs"):
        check_device("cuda:2")
    assert describe_gpus() == "GPU 0, GPU 1; CuPy 14.2.0, driver for CUDA 13.0"


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "CUDA", "cuda1", "", None, 0])
def test_other_names_are_refused(name):
    with says('^device must be "cpu", "cuda" or "cuda:N", got'):
        check_device(name)


def test_a_device_becomes_the_one_to_compute_on(install):
    install(gpus=2)
    use_device("cuda:1")
    use_device("cpu")
    assert Used.numbers == [1]

"""Where arrays live: the one place that knows NumPy from CuPy.

Everything above asks `get_array_module` which library made the arrays it was given, so the same code runs on a
CPU and on a GPU. There is no global "current backend": the arrays decide.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from minifocal.errors import InputError, check_integer, one_line

Array: TypeAlias = Any
"""An array of NumPy, of CuPy, or of another library that names itself by `__array_namespace__`."""

Generator: TypeAlias = np.random.Generator
"""The source of all randomness; it lives on the host, so that every device sees the same draws."""

FLOAT_DTYPES = ("float32", "float64")


def get_array_module(*arrays: Array) -> ModuleType:
    """Name the library that made all of these arrays.

    Args:
        arrays: at least one array. Python scalars are no arrays: pass them separately.
    Returns:
        `numpy`, `cupy`, or what `__array_namespace__` of another array type returns.
    Raises:
        TypeError: something is no array, or the arrays come from two libraries; the message names both.
    """
    home = _home(arrays[0])
    for other in arrays[1:]:
        if _home(other) is not home or device_of(other) != device_of(arrays[0]):
            raise TypeError(
                f"arrays of two homes: {_describe(arrays[0])} and {_describe(other)}; "
                "move one of them with minifocal.arrays.to_device"
            )
    return home


def _home(array: Array) -> ModuleType:
    if isinstance(array, np.ndarray | np.generic):
        return np
    library = type(array).__module__.partition(".")[0]
    if library == "cupy":
        return import_cupy()
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    raise TypeError(f"expected a NumPy or CuPy array, got {type(array).__name__}; wrap it with numpy.asarray")


def _describe(array: Array) -> str:
    return f"{_home(array).__name__} array of shape {tuple(array.shape)} on {device_of(array)}"


def import_cupy() -> ModuleType:
    """Import CuPy, or say in one line what is missing."""
    try:
        import cupy
    except ModuleNotFoundError as error:
        raise InputError(
            'device "cuda" needs CuPy, which is not installed; '
            'install "minifocal[cuda12]" or "minifocal[cuda13]", whichever the driver supports'
        ) from error
    except ImportError as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"CuPy is installed but cannot be loaded: {reason}; reinstall it for this driver") from error
    return cupy


def check_device(device: str) -> int | None:
    """Read a device's name: None for "cpu", the device's number for "cuda" or "cuda:N".

    Raises:
        InputError: another name, CuPy is missing, or no such device is present.
    """
    if device == "cpu":
        return None
    kind, colon, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind != "cuda" or number.isdecimal() != bool(colon):
        raise InputError(f'device must be "cpu", "cuda" or "cuda:N", got {device!r}')
    index, count = int(number or 0), _count_gpus(import_cupy())
    if index >= count:
        raise InputError(f'device {device!r} is not present: CuPy sees {count} GPUs; use device "cpu"')
    return index


def _count_gpus(cupy: ModuleType) -> int:
    """Count the GPUs.

    Raises:
        InputError: there is no driver, or it does not support this build of CuPy.
    """
    runtime = cupy.cuda.runtime
    try:
        return int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        driver, built_for = runtime.driverGetVersion() // 1000, runtime.runtimeGetVersion() // 1000
        if not driver:
            raise InputError(
                'device "cuda" needs the driver of an NVIDIA GPU, and there is none; use device "cpu"'
            ) from error
        if driver < built_for:
            raise InputError(
                f"CuPy is built for CUDA {built_for}, but the driver supports CUDA {driver} at most; "
                f'uninstall cupy-cuda{built_for}x and install "minifocal[cuda{driver}]", or bring the driver up to date'
            ) from error
        if "NoDevice" in str(error):
            return 0
        raise InputError(f"CuPy cannot reach a GPU: {one_line(str(error))}; see minifocal doctor") from error


def describe_gpus() -> str:
    """Name the GPUs that CuPy sees, its version and the driver's.

    Raises:
        InputError: there is none, or no CuPy.
    """
    check_device("cuda")
    cupy = import_cupy()
    runtime = cupy.cuda.runtime
    names = [runtime.getDeviceProperties(index)["name"].decode() for index in range(runtime.getDeviceCount())]
    driver = runtime.driverGetVersion()
    return f"{', '.join(names)}; CuPy {cupy.__version__}, driver for CUDA {driver // 1000}.{driver % 1000 // 10}"


def use_device(device: str) -> None:
    """Make a device the one that this thread computes on from now on, as CuPy needs it; nothing for "cpu".

    Raises:
        InputError: as check_device.
    """
    index = check_device(device)
    if index is not None:
        import_cupy().cuda.Device(index).use()


def device_of(array: Array) -> str:
    """Where an array lives: "cpu", or "cuda:N" for device N."""
    if _home(array) is np:
        return "cpu"
    device = getattr(array, "device", "cpu")
    return f"cuda:{device.id}" if hasattr(device, "id") else str(device)


def to_device(array: Array, device: str) -> Array:
    """Give the array on `device`: itself where it is there already, a copy where it is not."""
    index = check_device(device)
    if index is None:
        return as_numpy(array)
    cupy = import_cupy()
    with cupy.cuda.Device(index):
        return cupy.asarray(array)


def as_numpy(array: Array) -> np.ndarray:
    """Give the array in host memory: itself where it is there already, a copy where it is not."""
    return array.get() if hasattr(array, "get") else np.asarray(array)


def as_floats(scalars: Sequence[Array]) -> list[float]:
    """Give scalar arrays of one home as numbers, all in one transfer."""
    if not scalars:
        return []
    stacked = get_array_module(*scalars).stack([scalar.astype("float64") for scalar in scalars])
    return as_numpy(stacked).tolist()


def beside(values: np.ndarray, array: Array) -> Array:
    """Give host `values` the home and the device of `array`."""
    home = _home(array)
    if home.__name__ != "cupy":
        return home.asarray(values)
    with array.device:  # CuPy makes arrays on the device that is current
        return home.asarray(values)


def like(values: np.ndarray, array: Array) -> Array:
    """Give host `values` the home, the device and the dtype of `array`."""
    return beside(values.astype(array.dtype), array)


def full(shape: tuple[int, ...], value: float, dtype: str) -> np.ndarray:
    """Make a host array of one value; zeros take no memory before they are written to."""
    return np.full(shape, value, dtype=dtype) if value else np.zeros(shape, dtype=dtype)


@contextmanager
def overflow_is_looked_for() -> Iterator[None]:
    """Silence NumPy's warnings of overflow and NaN where what comes out is tested anyway."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        yield


def is_on_host(array: Array) -> bool:
    """Whether the values can be looked at without waiting for a device."""
    return isinstance(array, np.ndarray | np.generic)


def erf(x: Array) -> Array:
    """Error function, erf(x) = 2/sqrt(pi) ∫_0^x exp(-t²) dt, elementwise, in the dtype of x."""
    home = _home(x)
    if home is np:
        from scipy.special import erf as scipy_erf  # imported where used: the package starts without SciPy

        return scipy_erf(x)
    if home.__name__ == "cupy":
        from cupyx.scipy.special import erf as cupy_erf

        return cupy_erf(x)
    return home.erf(x)


def float32_linspace(stop: float, count: int) -> list[float]:
    """Give `count` evenly spaced numbers from 0 to `stop`, rounded as float32 arithmetic rounds them.

    Published weights were trained with drop rates made in float32 from both ends towards the middle; the
    last digits differ from those of float64.
    """
    end = np.float32(stop)
    step = end / np.float32(max(count - 1, 1))
    near = [step * np.float32(i) for i in range(count)]
    return [float(near[i] if i < count / 2 else end - near[count - 1 - i]) for i in range(count)]


def random_generator(*seed: int) -> Generator:
    """Make the generator that all randomness of this package comes from: the same seeds, the same draws.

    Raises:
        InputError: a negative seed.
    """
    for number in seed:
        check_integer("a seed", number, at_least=0)
    return np.random.default_rng(list(seed))


def check_images(images: Array, channels: int, beside: Array) -> None:
    """Refuse anything but finite images (B, `channels`, H, W) of the home and dtype of a network's array.

    Values on a device are not looked at: that would wait for it.

    Raises:
        InputError: wrong rank, channels or dtype, an empty batch, or a value that is not finite.
        TypeError: not an array, or one of another home.
    """
    xp, dtype = get_array_module(images, beside), beside.dtype
    if images.ndim != 4:
        raise InputError(
            f"images must be (batch, channels, height, width), got shape {tuple(images.shape)}; "
            "a single image needs images[None]"
        )
    if images.shape[1] != channels:
        raise InputError(
            f"images must have {channels} channels in axis 1, got shape {tuple(images.shape)}; "
            "channels-last images need images.transpose(0, 3, 1, 2)"
        )
    if images.dtype != dtype:
        raise InputError(f'images must be {dtype}, as the network is, got {images.dtype}; use .astype("{dtype}")')
    if 0 in images.shape:
        raise InputError(f"images must not be empty, got shape {tuple(images.shape)}")
    if is_on_host(images) and not xp.isfinite(images).all():
        bad = int((~xp.isfinite(images)).any(axis=(1, 2, 3)).argmax())
        raise InputError(f"images must be finite, but image {bad} holds NaN or infinity; clean the data first")

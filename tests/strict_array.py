"""A stand-in for CuPy: arrays that keep apart from NumPy's as those of a GPU do, on a machine that has none.

A `StrictArray` wraps a NumPy array and gives it out by `.get()` only. It refuses to become a NumPy array by itself
and to meet one, in an operator, an assignment or a function. Its `StrictLibrary` counts what crosses between host and
device.
"""

import operator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import scipy.special

OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "rshift")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
UNARY = ("neg", "pos", "abs", "invert")
METHODS = ("sum", "mean", "max", "min", "any", "all", "argmax", "reshape", "transpose", "astype", "copy", "view")
ATTRIBUTES = ("shape", "ndim", "dtype", "size", "nbytes", "itemsize", "strides", "flags")
# What the engine may call: CuPy has each of these under the same name with the same arguments.
FUNCTIONS = (
    "abs",
    "arange",
    "ascontiguousarray",
    "broadcast_to",
    "clip",
    "concatenate",
    "copysign",
    "empty",
    "exp",
    "isfinite",
    "isnan",
    "log",
    "ones",
    "pad",
    "result_type",
    "sqrt",
    "stack",
    "tanh",
    "where",
    "zeros",
    "zeros_like",
)


class DeviceMemory(NamedTuple):
    """Where an array begins, as CuPy says it."""

    ptr: int


class StrictLibrary:
    """A namespace of array functions with one device of its own.

    Attributes:
        to_device: the shape of every array that came from the host (`asarray`).
        to_host: the shape of every array that went to the host (`.get()`, `float`, `bool`, `int`).
    """

    def __init__(self, name: str = "strict") -> None:
        self.__name__ = name
        self.to_device: list[tuple[int, ...]] = []
        self.to_host: list[tuple[int, ...]] = []
        for function in FUNCTIONS:
            setattr(self, function, partial(self.run, getattr(np, function)))
        self.erf = partial(self.run, scipy.special.erf)

    def asarray(self, values: Any) -> "StrictArray":
        """Copy a NumPy array to the device; an array that is there already comes back as it is."""
        if isinstance(values, np.ndarray | np.generic):
            self.to_device.append(values.shape)
            return StrictArray(np.array(values), self)
        self.unwrap(values)  # refuses what is of another library
        return values

    def unravel_index(self, indices: Any, dims: tuple[int, ...]) -> Any:
        """As in CuPy: the indices must be an array."""
        if not isinstance(indices, StrictArray):
            raise TypeError("unravel_index takes an array")
        return self.run(np.unravel_index, indices, dims)

    def run(self, function: Any, *arguments: Any, **options: Any) -> Any:
        """Run a NumPy function inside the wrappings."""
        arguments = tuple(self.unwrap(argument) for argument in arguments)
        return self.wrap(function(*arguments, **{name: self.unwrap(value) for name, value in options.items()}))

    def wrap(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self.wrap, value))
        return StrictArray(np.asarray(value), self) if isinstance(value, np.ndarray | np.generic) else value

    def unwrap(self, value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(map(self.unwrap, value))
        if isinstance(value, StrictArray) and value.library is self:
            return value._host
        if isinstance(value, StrictArray | np.ndarray | np.generic):
            raise TypeError(
                f"unsupported type {type(value).__name__}: this array is of another library than {self.__name__}"
            )
        return value


class StrictArray:
    """An array of a StrictLibrary."""

    __array_ufunc__ = None  # NumPy's operators leave a mixed pair to this class, which refuses it
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: np.ndarray, library: StrictLibrary) -> None:
        self._host = host
        self.library = library

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("implicit conversion to a NumPy array is not allowed; use .get()")

    def __array_namespace__(self) -> StrictLibrary:
        return self.library

    @property
    def device(self) -> str:
        return f"{self.library.__name__}:0"

    @property
    def data(self) -> "DeviceMemory":
        return DeviceMemory(self._host.ctypes.data)

    @property
    def T(self) -> "StrictArray":  # noqa: N802
        return StrictArray(self._host.T, self.library)

    def get(self) -> np.ndarray:
        """Copy to the host."""
        self.library.to_host.append(self.shape)
        return self._host.copy()

    def __getitem__(self, index: Any) -> "StrictArray":
        return self.library.run(operator.getitem, self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.library.run(operator.setitem, self, index, value)

    def __len__(self) -> int:
        return len(self._host)

    def __repr__(self) -> str:
        return f"StrictArray(shape={self.shape}, dtype={self.dtype})"

    def _scalar(self) -> Any:
        if self.ndim > 0:
            raise TypeError(f"only a scalar becomes a number by itself, not an array of shape {self.shape}; use .get()")
        return self.get()[()]

    def __float__(self) -> float:
        return float(self._scalar())

    def __int__(self) -> int:
        return int(self._scalar())

    def __bool__(self) -> bool:
        return bool(self._scalar())

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))


def _binary(name: str) -> Any:
    return lambda self, other: self.library.run(getattr(operator, f"__{name}__"), self, other)


def _reflected(name: str) -> Any:
    return lambda self, other: self.library.run(getattr(operator, f"__{name}__"), other, self)


def _in_place(name: str) -> Any:
    def method(self: StrictArray, other: Any) -> StrictArray:
        self.library.run(getattr(operator, f"__i{name}__"), self, other)
        return self

    return method


def _unary(name: str) -> Any:
    return lambda self: self.library.run(getattr(operator, name), self)


def _method(name: str) -> Any:
    return lambda self, *arguments, **options: self.library.run(getattr(np.ndarray, name), self, *arguments, **options)


for _name in OPERATORS:
    setattr(StrictArray, f"__{_name}__", _binary(_name))
    setattr(StrictArray, f"__r{_name}__", _reflected(_name))
    setattr(StrictArray, f"__i{_name}__", _in_place(_name))
for _name in COMPARISONS:
    setattr(StrictArray, f"__{_name}__", _binary(_name))
for _name in UNARY:
    setattr(StrictArray, f"__{_name}__", _unary(_name))
for _name in METHODS:
    setattr(StrictArray, _name, _method(_name))
for _name in ATTRIBUTES:
    setattr(StrictArray, _name, property(lambda self, name=_name: getattr(self._host, name)))
for _name in ("real", "imag"):
    setattr(StrictArray, _name, property(lambda self, name=_name: self.library.wrap(getattr(self._host, name))))

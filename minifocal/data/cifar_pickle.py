"""Reading the pickles of CIFAR: dicts of NumPy arrays, lists and strings.

The files need three names of NumPy. Each is replaced by a stand-in that keeps what it is given; the arrays are
built afterwards, from checked parts.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from minifocal.errors import InputError, is_integer, shown
from minifocal.files import read_bytes
from minifocal.safe_pickle import StandIn, run_pickle

MAX_PICKLE_BYTES = 2**28  # the largest, CIFAR-100's training file, has 155 MB
MAX_AXES = 8
DTYPE_NAMES = frozenset({"u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"})
BYTE_ORDERS = frozenset({"<", ">", "=", "|"})
NDARRAY = "numpy.ndarray"


class _PickledDtype(StandIn):
    """Stands in for `numpy.dtype`: remembers name and byte order of a plain number type."""

    def __init__(self, name: Any, align: Any, copy: Any) -> None:
        self.name = _text(name)
        self.byte_order = "="
        if self.name not in DTYPE_NAMES:
            raise InputError(f"refused an array of dtype {shown(self.name)}; only plain numbers are read")

    def set_state(self, state: Any) -> None:
        self.byte_order = _text(state[1])
        if self.byte_order not in BYTE_ORDERS:
            raise InputError(f"refused an array of byte order {shown(self.byte_order)}")

    def dtype(self) -> np.dtype:
        return np.dtype(self.byte_order + self.name)


class _PickledArray(StandIn):
    """Stands in for what NumPy's `_reconstruct` makes: remembers shape, dtype and bytes."""

    def __init__(self, kind: Any, shape: Any, typecode: Any) -> None:
        if kind != NDARRAY:
            raise InputError("refused an array that is no plain numpy.ndarray")

    def set_state(self, state: Any) -> None:
        _, self.shape, self.kept_dtype, self.column_major, self.values = state

    def array(self) -> np.ndarray:
        dtype, shape = self.kept_dtype.dtype(), tuple(self.shape)
        if len(shape) > MAX_AXES or not all(is_integer(size) and 0 <= size <= MAX_PICKLE_BYTES for size in shape):
            raise InputError(f"refused an array of shape {shown(shape)}")  # before such sizes are multiplied
        if len(self.values) != math.prod(shape) * dtype.itemsize:
            raise InputError(f"an array of shape {shape} and dtype {dtype} comes with {len(self.values)} bytes")
        return np.frombuffer(self.values, dtype).reshape(shape, order="F" if self.column_major else "C")


# NumPy 1 and 2 write the first name differently; both are the same to us.
STAND_INS: dict[str, Any] = {
    "numpy.core.multiarray._reconstruct": _PickledArray,
    "numpy._core.multiarray._reconstruct": _PickledArray,
    "numpy.dtype": _PickledDtype,
    "numpy.ndarray": NDARRAY,
}


def read_pickle(path: Path | str) -> dict[str, Any]:
    """Read a pickled dict of arrays, numbers, strings and lists of them.

    Keys that Python 2 wrote as bytes come back as text; strings inside the values stay bytes.

    Raises:
        InputError: the file cannot be read, is larger than 256 MiB, damaged or no pickle of a dict, holds an
            array of objects, or names anything but NumPy's plain arrays; the message says what.
    """
    path = Path(path)
    data = read_bytes(path, MAX_PICKLE_BYTES)
    try:
        values = run_pickle(data, STAND_INS)
        if type(values) is not dict:
            raise InputError(f"expected a pickled dict, got {type(values).__name__}")
        return {
            _text(key): value.array() if isinstance(value, _PickledArray) else value for key, value in values.items()
        }
    except InputError as error:
        raise InputError(f"{path}: {error}; is this the right file?") from error
    except Exception as error:  # parts that are missing or of another type than NumPy writes
        raise InputError(f"{path}: expected a pickle, but it is damaged, cut short or another format") from error


def _text(value: Any) -> str:
    """Give text as text, and any other value by its short form."""
    if isinstance(value, str):
        return value
    return value.decode("utf-8") if isinstance(value, bytes) else shown(value)

"""Tensors that still lie in a file: known by name, shape and type, mapped into memory when they are asked for."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from minifocal.errors import InputError, is_integer, shown
from minifocal.files import cannot_read

STORED_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
"""The floating-point types of weights files, as safetensors names them, and how their bytes are read."""

COUNTER_DTYPES: dict[str, np.dtype] = {"I32": np.dtype("<i4")}
"""What a checkpoint of this package may hold beside weights: a loss scaler counts its steps."""

_DTYPES = {**STORED_DTYPES, **COUNTER_DTYPES}

MAX_AXES = 8


class FileIdentity(NamedTuple):
    """What tells an open file from another one of its name, and from itself once it has been written to."""

    device: int
    inode: int
    size: int  # in bytes
    written: int  # in ns

    @classmethod
    def of(cls, file: BinaryIO) -> "FileIdentity":
        """Look at an open file."""
        status = os.fstat(file.fileno())
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file. Reading it maps its bytes alone, so that a file of gigabytes is never in memory whole.

    Attributes:
        path: of the file.
        kind: "F64", "F32", "F16" or "BF16"; or "I32", which no weight is.
        shape: of the tensor.
        offset: where its first element begins, in bytes from the start of the file.
        strides: steps between elements along each axis, in elements.
        dtype: what `read` gives; halves are widened to "float32" unless `astype` says otherwise.
        identity: of the file that was looked at, which it must still be to be read; None does not look.
    """

    path: Path
    kind: str
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]
    dtype: str
    identity: FileIdentity | None = None

    @classmethod
    def locate(
        cls,
        path: Path,
        kind: str,
        shape: Sequence[int],
        strides: Sequence[int] | None = None,
        *,
        offset: int,
        available: int,
        identity: FileIdentity | None = None,
    ) -> "StoredTensor":
        """Describe a tensor that begins at `offset` and may use the `available` bytes from there on.

        Without strides it lies in the order of its elements.

        Raises:
            InputError: it is of another type, has a shape that is none, does not lie within those bytes, or has more
                elements than they can hold.
        """
        if kind not in _DTYPES:
            raise InputError(f"refused a tensor of type {shown(kind)}; weights are {', '.join(STORED_DTYPES)}")
        if len(shape) > MAX_AXES:
            raise InputError(f"a tensor has {len(shape)} axes, expected at most {MAX_AXES}; the file is damaged")
        strides = _contiguous(shape) if strides is None else strides
        sizes = [*shape, *strides]
        if len(shape) != len(strides) or not all(is_integer(n) and n >= 0 for n in sizes):
            raise InputError(f"a tensor has shape {shown(shape)} and strides {shown(strides)}; the file is damaged")
        dtype = {"F64": "float64", "I32": "int32"}.get(kind, "float32")
        tensor = cls(path, kind, tuple(shape), offset, tuple(strides), dtype, identity)
        room = available // _DTYPES[kind].itemsize
        if 0 in shape or tensor.extent > room or math.prod(shape) > room:
            where = f"shape {shown(shape)} and strides {shown(strides)} does not lie in its {room} elements"
            raise InputError(f"a tensor of {where}; the file is damaged")
        return tensor

    @property
    def extent(self) -> int:
        """How many elements lie between the first and the last one, both included."""
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of the values, as they are stored."""
        return math.prod(self.shape) * _DTYPES[self.kind].itemsize

    def astype(self, dtype: str) -> "StoredTensor":
        """Give the same tensor, to be read as another type."""
        return replace(self, dtype=dtype)

    def read(self) -> np.ndarray:
        """Map the values; they are copied only where their type changes.

        Raises:
            InputError: the file cannot be read any more, or is another one by now, as the checkpoint of a run that
                goes on will be.
        """
        try:
            with self.path.open("rb") as file:
                if self.identity not in (None, FileIdentity.of(file)):
                    raise ValueError("another file has its name")
                flat = np.memmap(file, _DTYPES[self.kind], "r", self.offset, (self.extent,))
        except OSError as error:
            raise cannot_read(self.path, error) from error
        except ValueError as error:
            raise InputError(f"{self.path} has changed while it was read; read it again") from error
        strides = tuple(stride * flat.itemsize for stride in self.strides)
        values = np.lib.stride_tricks.as_strided(np.asarray(flat), self.shape, strides, writeable=False)
        if self.kind == "BF16":  # the upper half of a float32
            values = (values.astype("<u4", order="C") << 16).view("<f4")
        return values.astype(self.dtype, copy=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Let NumPy read it."""
        return self.read() if dtype is None else self.read().astype(dtype)


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))

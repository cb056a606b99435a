"""Tensors that still lie in a file: known by name, shape and type, mapped into memory when they are asked for."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minifocal.errors import InputError
from minifocal.files import cannot_read

STORED_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""The floating-point types of weights files, as safetensors names them, and how their bytes are read."""

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file. Reading it maps its bytes alone, so that a file of gigabytes is never in memory whole.

    Attributes:
        path: of the file.
        kind: "F64", "F32", "F16" or "BF16".
        shape: of the tensor.
        offset: where its first element begins, in bytes from the start of the file.
        strides: steps between elements along each axis, in elements.
        dtype: what `read` gives; halves are widened to "float32" unless `astype` says otherwise.
    Raises:
        InputError: the file holds fewer bytes than that, or the strides show an element more than once.
    """

    path: Path
    kind: str
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]
    dtype: str

    @classmethod
    def locate(
        cls, path: Path, kind: str, shape: tuple[int, ...], offset: int, strides: tuple[int, ...] | None = None
    ) -> "StoredTensor":
        """Describe a tensor; without strides it lies in the order of its elements."""
        if kind not in STORED_DTYPES:
            raise InputError(f"refused a tensor of type {kind[:20]!r}; weights are {', '.join(STORED_DTYPES)}")
        strides = _contiguous(shape) if strides is None else strides
        return cls(path, kind, shape, offset, strides, "float64" if kind == "F64" else "float32")

    @property
    def extent(self) -> int:
        """How many elements lie between the first and the last one, both included."""
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of the values, as they are stored."""
        return math.prod(self.shape) * ITEM_BYTES[self.kind]

    def astype(self, dtype: str) -> "StoredTensor":
        """Give the same tensor, to be read as another type."""
        return replace(self, dtype=dtype)

    def read(self) -> np.ndarray:
        """Map the values; they are copied only where their type changes.

        Raises:
            InputError: the file cannot be read any more.
        """
        try:
            flat = np.memmap(self.path, STORED_DTYPES[self.kind], "r", self.offset, (self.extent,))
        except OSError as error:
            raise cannot_read(self.path, error) from error
        except ValueError as error:
            raise InputError(f"{self.path} has changed while it was read; read it again") from error
        values = np.asarray(flat)
        if self.kind == "BF16":  # the upper half of a float32
            values = (values.astype("<u4") << 16).view("<f4")
        strides = tuple(stride * values.itemsize for stride in self.strides)
        values = np.lib.stride_tricks.as_strided(values, self.shape, strides, writeable=False)
        return values.astype(self.dtype, copy=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Let NumPy read it."""
        return self.read() if dtype is None else self.read().astype(dtype)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))

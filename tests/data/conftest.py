"""Writers of the file formats that the loaders read."""

import io
import pickle
import struct
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest


class Python2Pickler(pickle._Pickler):
    """Writes strings as Python 2 did, which is what the published CIFAR files hold."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        raw = value.encode() if isinstance(value, str) else value
        head = b"U" + bytes([len(raw)]) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw))
        self.write(head + raw)
        self.memoize(value)

    dispatch[bytes] = save_string
    dispatch[str] = save_string


@pytest.fixture(scope="session")
def python2_pickle() -> Callable[[Any], bytes]:
    def dump(value):
        stream = io.BytesIO()
        Python2Pickler(stream, protocol=2).dump(value)
        return stream.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")

    return dump


@pytest.fixture(scope="session")
def idx_bytes() -> Callable[[np.ndarray], bytes]:
    def dump(values):
        return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()

    return dump

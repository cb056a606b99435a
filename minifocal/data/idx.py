"""MNIST and Fashion-MNIST: the IDX format, plain or compressed with gzip.

An IDX file is two zero bytes, one byte for the type (8: unsigned bytes), one for the number of axes, a
big-endian 32-bit size for each axis, then the values (LeCun, Cortes and Burges, "The MNIST database").
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from minifocal.data.dataset import Dataset, Splits
from minifocal.errors import InputError
from minifocal.files import cannot_read, check_regular

UNSIGNED_BYTES = 0x08
MAX_AXES = 4
MAX_VALUES = 2**30
CHUNK_BYTES = 2**20
GZIP_MAGIC = b"\x1f\x8b"

MNIST_CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
}
MNIST_NOTES = {
    "mnist": "MNIST (LeCun, Cortes and Burges), CC BY-SA 3.0; the published split",
    "fashion-mnist": "Fashion-MNIST (Xiao, Rasul and Vollgraf 2017), MIT; the published split",
}


def read_idx(path: Path | str) -> np.ndarray:
    """Read an IDX file of unsigned bytes; gzip is known by its first bytes, not by the name.

    The header is checked before memory is taken, and never more is read than it announces and one byte.

    Returns:
        the values in the shape that the header gives, uint8.
    Raises:
        InputError: the file cannot be read, is no IDX file of unsigned bytes, or is longer or shorter than
            its header says.
    """
    path = Path(path)
    check_regular(path)
    try:
        with path.open("rb") as raw:
            compressed = raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            raw.seek(0)
            if not compressed:
                return _read_values(raw, path)
            with gzip.GzipFile(fileobj=raw) as unpacked:
                return _read_values(unpacked, path)  # type: ignore[arg-type]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: the gzip data is damaged or cut short ({error}); download it again") from error
    except OSError as error:
        raise cannot_read(path, error) from error


def _read_values(file: BinaryIO, path: Path) -> np.ndarray:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise InputError(
            f"{path}: expected an IDX file starting with bytes 00 00, got {magic!r}; is this the right file?"
        )
    kind, axes = magic[2], magic[3]
    if kind != UNSIGNED_BYTES or not 1 <= axes <= MAX_AXES:
        raise InputError(
            f"{path}: expected IDX type 8 (unsigned bytes) with 1 to {MAX_AXES} axes, "
            f"got type {kind} with {axes}; is this the right file?"
        )
    header = file.read(4 * axes)
    if len(header) < 4 * axes:
        raise InputError(f"{path}: the IDX header is cut short; download it again")
    shape = struct.unpack(f">{axes}I", header)
    expected = math.prod(shape)
    if math.prod(size or 1 for size in shape) > MAX_VALUES:  # no array has such sides, even where one of them is 0
        raise InputError(
            f"{path}: the header claims the shape {shape}, more than {MAX_VALUES} bytes; is this the right file?"
        )

    # Grown chunk by chunk: a short file with a large header takes no more memory than it has bytes.
    values = bytearray()
    while len(values) <= expected:
        chunk = file.read(min(CHUNK_BYTES, expected + 1 - len(values)))
        if not chunk:
            break
        values += chunk
    if len(values) != expected:
        got = f"only {len(values)}" if len(values) < expected else "more"
        raise InputError(f"{path}: the header announces {expected} bytes, but there are {got}; download it again")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def mnist_splits(root: Path | str, name: str) -> Splits:
    """Read the four files of "mnist" or "fashion-mnist" in folder `root`, with or without ".gz".

    Raises:
        InputError: another name, a file is missing or damaged, or images and labels do not fit together.
    """
    if name not in MNIST_CLASSES:
        raise InputError(f"expected one of {', '.join(MNIST_CLASSES)}, got {name!r}")
    train = _read_pair(Path(root), "train", name)
    test = _read_pair(Path(root), "t10k", name)
    return Splits(name, train, test, MNIST_NOTES[name])


def _read_pair(root: Path, part: str, name: str) -> Dataset:
    images_file = _find(root, f"{part}-images-idx3-ubyte", name)
    labels_file = _find(root, f"{part}-labels-idx1-ubyte", name)
    images, labels = read_idx(images_file), read_idx(labels_file)
    if images.ndim != 3:
        raise InputError(f"{images_file}: expected images with 3 axes, got shape {images.shape}; were files swapped?")
    if labels.shape != (len(images),):
        raise InputError(
            f"{labels_file}: expected {len(images)} labels, as there are images, got shape {labels.shape}; "
            "download both again"
        )
    try:
        return Dataset(images[:, None], labels.astype(np.int64), MNIST_CLASSES[name])
    except InputError as error:
        raise InputError(f"{labels_file}: {error}") from error


def _find(root: Path, name: str, data: str) -> Path:
    for candidate in (root / name, root / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise InputError(f"{root} has no {name} (or {name}.gz); run: minifocal data fetch {data}")

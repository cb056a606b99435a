"""CIFAR-10 and CIFAR-100, in their binary and in their Python form.

Described at https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky 2009). A binary record is 1 label byte
(CIFAR-100: 2, coarse and fine) and 3072 pixels: the red plane of 32×32, then green, then blue.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minifocal.data.cifar_pickle import read_pickle
from minifocal.data.dataset import Dataset, Splits
from minifocal.errors import InputError, shown
from minifocal.files import read_bytes

IMAGE_SHAPE = (3, 32, 32)
IMAGE_BYTES = 3072
MAX_FILE_BYTES = 2**28

Part = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class _Layout:
    """Names within the folder of one data set."""

    num_classes: int
    folder: str  # the published archives unpack into {folder}-py or {folder}-bin, or like names
    train_files: tuple[str, ...]
    test_file: str
    meta_file: str
    names_file: str
    label_bytes: int
    labels_key: str
    names_key: str


LAYOUTS = {
    "cifar10": _Layout(
        num_classes=10,
        folder="cifar-10-batches",
        train_files=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test_file="test_batch",
        meta_file="batches.meta",
        names_file="batches.meta.txt",
        label_bytes=1,
        labels_key="labels",
        names_key="label_names",
    ),
    "cifar100": _Layout(
        num_classes=100,
        folder="cifar-100",
        train_files=("train",),
        test_file="test",
        meta_file="meta",
        names_file="fine_label_names.txt",
        label_bytes=2,
        labels_key="fine_labels",
        names_key="fine_label_names",
    ),
}


def cifar_splits(root: Path | str, name: str) -> Splits:
    """Read "cifar10" or "cifar100" (with its 100 fine labels) from folder `root`.

    The files may lie in `root` or in the folder that the published archive unpacks to; the Python form is
    taken where both forms are there.

    Raises:
        InputError: another name, a file is missing, damaged or of another format, or a label is out of range.
    """
    if name not in LAYOUTS:
        raise InputError(f"expected one of {', '.join(LAYOUTS)}, got {name!r}")
    layout, root = LAYOUTS[name], Path(root)
    for folder in (root, *sorted(path for path in root.glob(f"{layout.folder}*") if path.is_dir())):
        if (folder / layout.meta_file).is_file():
            return _splits(name, folder, "", _read_python_part, _read_python_names(folder, layout))
        if (folder / layout.names_file).is_file():
            return _splits(name, folder, ".bin", _read_binary_part, _read_binary_names(folder, layout))
    raise InputError(
        f"{root} has neither {layout.meta_file} nor {layout.names_file} of {name}; run: minifocal data fetch {name}"
    )


def _splits(
    name: str, folder: Path, suffix: str, read_part: Callable[[Path, _Layout], Part], class_names: tuple[str, ...]
) -> Splits:
    layout = LAYOUTS[name]
    if len(class_names) != layout.num_classes:
        raise InputError(
            f"{folder}: expected {layout.num_classes} class names for {name}, got {len(class_names)}; download it again"
        )

    def read(files: tuple[str, ...]) -> Dataset:
        parts = [_checked(folder / f"{file}{suffix}", layout, read_part) for file in files]
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return Dataset(images, labels, class_names)

    note = f"{name.upper().replace('CIFAR', 'CIFAR-')} (Krizhevsky 2009), no licence stated; the published split"
    return Splits(name, read(layout.train_files), read((layout.test_file,)), note)


def _checked(path: Path, layout: _Layout, read_part: Callable[[Path, _Layout], Part]) -> Part:
    images, labels = read_part(path, layout)
    outside = (labels < 0) | (labels >= layout.num_classes)
    if outside.any():
        bad = int(np.argmax(outside))
        raise InputError(
            f"{path}: labels must be 0 to {layout.num_classes - 1}, got {labels[bad]} for image {bad}; "
            "download it again"
        )
    return images.reshape(-1, *IMAGE_SHAPE), labels.astype(np.int64)


def _read_binary_part(path: Path, layout: _Layout) -> Part:
    data = np.frombuffer(read_bytes(path, MAX_FILE_BYTES), dtype=np.uint8)
    record = layout.label_bytes + IMAGE_BYTES
    if len(data) == 0 or len(data) % record:
        raise InputError(f"{path}: expected whole records of {record} bytes, got {len(data)} bytes; download it again")
    records = data.reshape(-1, record)
    return records[:, layout.label_bytes :], records[:, layout.label_bytes - 1]


def _read_binary_names(folder: Path, layout: _Layout) -> tuple[str, ...]:
    text = read_bytes(folder / layout.names_file, 2**16).decode("utf-8", errors="replace")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _read_python_part(path: Path, layout: _Layout) -> Part:
    values = read_pickle(path)
    images, labels = _value(path, values, "data"), _value(path, values, layout.labels_key)
    if not (isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 2):
        raise InputError(f'{path}: expected "data" as a table of bytes; is this the right file?')
    if images.shape[1] != IMAGE_BYTES or len(images) == 0:
        raise InputError(f'{path}: expected "data" of shape (N, {IMAGE_BYTES}), got {images.shape}; download it again')
    if not isinstance(labels, list) or len(labels) != len(images):
        raise InputError(f'{path}: expected {len(images)} "{layout.labels_key}" in a list, one each; download it again')
    if not all(type(label) is int and label.bit_length() < 32 for label in labels):
        raise InputError(f'{path}: expected small whole numbers in "{layout.labels_key}"; download it again')
    return images, np.array(labels)


def _read_python_names(folder: Path, layout: _Layout) -> tuple[str, ...]:
    path = folder / layout.meta_file
    names = _value(path, read_pickle(path), layout.names_key)
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise InputError(f'{path}: expected "{layout.names_key}" as a list of names; download it again')
    return tuple(name.decode("utf-8", errors="replace") if isinstance(name, bytes) else name for name in names)


def _value(path: Path, values: dict[str, Any], key: str) -> Any:
    if key not in values:
        raise InputError(
            f'{path}: expected a pickled dict with "{key}", got {shown(sorted(values)[:8])}; is this the right file?'
        )
    return values[key]

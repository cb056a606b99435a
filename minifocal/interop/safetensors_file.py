"""Safetensors files: their tensors, mapped, and the text beside them.

A file is the length of its header (8 bytes, little-endian), the header (JSON: for each tensor its type, its shape and
where its bytes lie), and the bytes. The `safetensors` library checks the header; the tensors are mapped from here.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from minifocal.errors import InputError
from minifocal.files import atomic_path, cannot_read, saving
from minifocal.interop.tensors import ITEM_BYTES, StoredTensor

METADATA = "__metadata__"


def read_safetensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Give the tensors of a file by name, and its metadata. Nothing but the header is read.

    Raises:
        InputError: the file cannot be read, is cut short or damaged, or holds anything but floating-point tensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:  # checks lengths, offsets and overlaps
            metadata = file.metadata() or {}
        with path.open("rb") as raw:
            (length,) = struct.unpack("<Q", raw.read(8))
            header = json.loads(raw.read(length))
        size = path.stat().st_size
    except OSError as error:
        raise cannot_read(path, error) from error
    except (SafetensorError, struct.error, ValueError) as error:
        raise InputError(f"{path} is no safetensors file, or it is cut short or damaged: {error}") from error
    header.pop(METADATA, None)
    try:
        return {name: _locate(path, entry, 8 + length, size) for name, entry in header.items()}, metadata
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _locate(path: Path, entry: dict, start: int, size: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    tensor = StoredTensor.locate(path, entry["dtype"], tuple(entry["shape"]), start + begin)
    # The library has checked this of the header that it read; here it is seen to hold for the one read above.
    if not 0 <= begin <= end <= size - start or math.prod(tensor.shape) * ITEM_BYTES[tensor.kind] != end - begin:
        raise InputError("a tensor's bytes do not fit its shape and the file; the file is damaged")
    return tensor


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write a file wholly or not at all; make its folder first.

    Raises:
        InputError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        with saving(path), atomic_path(path) as partial:
            save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, partial, metadata)
    except SafetensorError as error:  # how the library passes on what the operating system said
        raise InputError(f"cannot write {path}: {error}; choose another folder") from error

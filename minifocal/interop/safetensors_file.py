"""Safetensors files: their tensors, mapped, and the text beside them.

A file is the length of its header (8 bytes, little-endian), the header (JSON: for each tensor its type, its shape and
where its bytes lie), and the bytes. The `safetensors` library checks the header; the tensors are mapped from here.
"""

import json
from pathlib import Path

from minifocal.errors import InputError, one_line
from minifocal.files import cannot_read, safetensors_header_length
from minifocal.interop.tensors import FileIdentity, StoredTensor

METADATA = "__metadata__"


def read_safetensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Give the tensors of a file by name, and its metadata. Nothing but the header is read.

    Raises:
        InputError: the file cannot be read, is cut short or damaged, or holds anything but floating-point tensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as raw:
            length = safetensors_header_length(raw)
            with safe_open(path, framework="numpy"):  # checks lengths, offsets and overlaps
                pass
            header = json.loads(raw.read(length))
            identity = FileIdentity.of(raw)
    except OSError as error:
        raise cannot_read(path, error) from error
    except (SafetensorError, RecursionError, ValueError) as error:
        raise InputError(
            f"{path} is no safetensors file, or it is cut short or damaged: {one_line(str(error))[:200]}"
        ) from error
    # What the library has checked may be an older file of this name: nothing but this header is used from here on.
    metadata = header.pop(METADATA, None) or {}
    try:
        return {name: _locate(path, entry, 8 + length, identity) for name, entry in header.items()}, metadata
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _locate(path: Path, entry: dict, start: int, identity: FileIdentity) -> StoredTensor:
    begin, end = entry["data_offsets"]
    # The library has checked the header that it read; that the one read above is as good is seen here.
    if not 0 <= begin <= end <= identity.size - start:
        raise InputError("a tensor lies outside of the file; the file is damaged")
    return StoredTensor.locate(
        path, entry["dtype"], entry["shape"], offset=start + begin, available=end - begin, identity=identity
    )

"""PyTorch's files (.pth, .pt, .bin), read and written without PyTorch.

Since PyTorch 1.6 a file is a zip archive of uncompressed members in one folder: `data.pkl`, a pickle of the saved
object in which every tensor names a storage; and `data/KEY`, the bytes of each storage. The pickle runs on the
restricted machine of `safe_pickle`, which knows the names below and no other; the storages are mapped.
"""

import io
import math
import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from minifocal.errors import InputError, is_integer, one_line, shown
from minifocal.files import atomic_writer, cannot_read, saving
from minifocal.interop.tensors import STORED_DTYPES, FileIdentity, StoredTensor
from minifocal.safe_pickle import run_pickle

MAX_PICKLE_BYTES = 2**20  # that of a training checkpoint of the largest variant has a quarter of it
MAX_DIRECTORY_BYTES = 2**20  # of the members: some 10,000 tensors; in memory it takes twenty times as much
LOCAL_HEADER_BYTES = 30  # of a zip member, before its name; the lengths of name and extra field stand at 26 and 28
TORCH_SUFFIXES = (".pth", ".pt", ".bin")
PICKLE, STORAGES, BYTE_ORDER = "data.pkl", "data", "byteorder"


@dataclass(frozen=True)
class StorageType:
    """Stands in for a class of storages, such as torch.FloatStorage."""

    kind: str  # "F32" and the like; for other than floating-point numbers PyTorch's own name


@dataclass(frozen=True)
class Storage:
    """Where the bytes of a storage lie."""

    kind: str
    offset: int  # in the file, in bytes
    nbytes: int


FLOATING = {"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}
OTHER = {"LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1}


def read_torch(path: Path) -> Any:
    """Give the object that `torch.save` wrote: dicts, lists, numbers and text, with a StoredTensor for each tensor.

    Tensors of integers or without elements, which a training checkpoint may hold beside its weights, come as None.

    Raises:
        InputError: the file cannot be read, is no such archive, is damaged, or names anything that weights do not need.
    """
    try:
        with path.open("rb", buffering=0) as file, _SmallReads(file) as raw, zipfile.ZipFile(raw) as archive:
            reader = _Archive(path, archive, raw)
            return run_pickle(reader.pickle(), reader.names(), reader.load_storage)
    except InputError as error:
        remedy = "; where you trust the file, save its weights alone: torch.save(model.state_dict(), path)"
        refused = str(error).startswith("refused a pickle that names")
        raise InputError(f"{path}: {error}{remedy if refused else ''}") from error
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{path} is no file of PyTorch 1.6 or newer, or it is cut short ({one_line(str(error))}); "
            "load an older one in PyTorch and save it again"
        ) from error
    except OSError as error:
        raise cannot_read(path, error) from error
    except (NotImplementedError, OverflowError, RuntimeError, ValueError, struct.error) as error:
        raise InputError(f"{path} is no archive that PyTorch writes: {one_line(str(error))}") from error


class _SmallReads(io.BufferedReader):
    """A file of which nothing large is read at once: that could only be a directory of more members than are."""

    def read(self, size: int | None = -1) -> bytes:
        """Read at most `size` bytes, or the rest of the file."""
        rest = max(0, os.fstat(self.fileno()).st_size - self.tell())
        size = rest if size is None or size < 0 else min(size, rest)
        if size > MAX_DIRECTORY_BYTES:
            raise InputError(f"its directory has {size} bytes, expected at most {MAX_DIRECTORY_BYTES}; is it damaged?")
        return super().read(size)


class _Archive:
    """The members of one file."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, raw: BinaryIO) -> None:
        self.path, self.archive, self.raw = path, archive, raw
        self.members = {member.filename: member for member in archive.infolist()}
        found = [name for name in self.members if name.rpartition("/")[2] == PICKLE and name.count("/") == 1]
        if len(found) != 1:
            raise InputError(f"expected one {PICKLE} in one folder, found {len(found)}; is this a file of PyTorch?")
        self.folder = found[0].removesuffix(PICKLE)
        self.storages: dict[str, Storage | None] = {}

    def pickle(self) -> bytes:
        order = self.folder + BYTE_ORDER
        if order in self.members and self._read(order, 16).strip() != b"little":
            raise InputError("the numbers are big-endian; save it again on a common machine")
        return self._read(self.folder + PICKLE, MAX_PICKLE_BYTES)

    def names(self) -> dict[str, Any]:
        kinds = {**FLOATING, **{name: name for name in OTHER}}
        return {
            "collections.OrderedDict": _empty_dict,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            **{f"torch.{name}": StorageType(kind) for name, kind in kinds.items()},
            # The configuration in a training checkpoint of the official code, and the set among its attributes.
            "yacs.config.CfgNode": _empty_dict,
            "__builtin__.set": _dropped_set,
            "argparse.Namespace": _empty_dict,  # the options in a training checkpoint of timm
        }

    def load_storage(self, identifier: Any) -> Storage | None:
        """Find the storage behind ("storage", type, key, device, number of elements)."""
        tag, storage_type, key, _, count = identifier
        if tag != "storage" or not isinstance(storage_type, StorageType) or not isinstance(key, str):
            raise InputError("a tensor does not say where its numbers lie; the file is damaged")
        if key not in self.storages:
            self.storages[key] = self._storage(storage_type.kind, key, count)
        return self.storages[key]

    def _storage(self, kind: str, key: str, count: Any) -> Storage | None:
        name = f"{self.folder}{STORAGES}/{key}"
        if name not in self.members:
            raise InputError(f"storage {shown(key)} is missing; the file is damaged")
        offset, size = self._locate(name)
        item_bytes = STORED_DTYPES[kind].itemsize if kind in STORED_DTYPES else OTHER[kind]
        if not is_integer(count) or count * item_bytes != size:
            text = f"claims {shown(count)} elements of {item_bytes} bytes and has {size} bytes"
            raise InputError(f"storage {shown(key)} {text}; the file is damaged")
        return Storage(kind, offset, size) if kind in STORED_DTYPES else None

    def _locate(self, name: str) -> tuple[int, int]:
        """Give where the bytes of a member begin and how many they are."""
        member = self.members[name]
        if member.compress_type != zipfile.ZIP_STORED:
            raise InputError(f"{shown(name)} is compressed, which PyTorch never does; save it again in PyTorch")
        self.raw.seek(member.header_offset)
        header = self.raw.read(LOCAL_HEADER_BYTES)
        offset = member.header_offset + LOCAL_HEADER_BYTES + sum(struct.unpack_from("<HH", header, 26))
        if offset + member.file_size > self.path.stat().st_size:
            raise InputError(f"{shown(name)} claims {member.file_size} bytes, more than the file has; it is damaged")
        return offset, member.file_size

    def _read(self, name: str, limit: int) -> bytes:
        offset, size = self._locate(name)
        if size > limit:
            raise InputError(f"{shown(name)} has {size} bytes, expected at most {limit}; is this a file of weights?")
        self.raw.seek(offset)
        return self.raw.read(size)

    def _tensor(
        self, storage: Any, start: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, *_: Any
    ) -> StoredTensor | None:
        """Stand in for PyTorch's function that makes a tensor of a part of a storage."""
        if storage is None:
            return None
        if isinstance(shape, tuple) and 0 in shape:
            return None
        if not is_integer(start) or start < 0:
            raise InputError(f"a tensor begins at element {shown(start)} of its storage; the file is damaged")
        skipped = start * STORED_DTYPES[storage.kind].itemsize
        return StoredTensor.locate(
            self.path,
            storage.kind,
            shape,
            strides,
            offset=storage.offset + skipped,
            available=storage.nbytes - skipped,
            identity=FileIdentity.of(self.raw),
        )


def _empty_dict() -> dict:
    return {}


def _dropped_set(items: list) -> None:
    return None


def write_torch(path: Path, tensors: Mapping[str, np.ndarray], text: Mapping[str, str]) -> None:
    """Write what `torch.save({"model": tensors, **text}, path)` would, wholly or not at all; make its folder first.

    `torch.load(path)` reads it, with `weights_only=True` too.

    Args:
        path: of the file.
        tensors: float32 or float64 arrays by name.
        text: other entries.
    Raises:
        InputError: it cannot be written.
    """
    folder = "archive"
    with saving(path), atomic_writer(path) as raw, zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{folder}/{PICKLE}", _pickle(tensors, text))
        archive.writestr(f"{folder}/{BYTE_ORDER}", "little")
        archive.writestr(f"{folder}/version", "3\n")
        for key, tensor in enumerate(tensors.values()):
            with archive.open(f"{folder}/{STORAGES}/{key}", "w", force_zip64=True) as member:
                member.write(np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<")).data.cast("B"))


def _pickle(tensors: Mapping[str, np.ndarray], text: Mapping[str, str]) -> bytes:
    """Write the program that builds {"model": tensors, **text}: pickle protocol 2, as PyTorch's is."""
    mark, empty_dict, empty_tuple, set_items, call = b"(", b"}", b")", b"u", b"R"
    program = [b"\x80\x02", empty_dict, mark, _unicode("model"), empty_dict, mark]
    for key, (name, tensor) in enumerate(tensors.items()):
        storage_type = {4: "FloatStorage", 8: "DoubleStorage"}[tensor.itemsize]
        strides = [math.prod(tensor.shape[axis + 1 :]) for axis in range(tensor.ndim)]
        program += [_unicode(name), _name("torch._utils", "_rebuild_tensor_v2"), mark]
        program += [mark, _unicode("storage"), _name("torch", storage_type), _unicode(str(key)), _unicode("cpu")]
        program += [_integer(tensor.size), b"t", b"Q"]  # a tuple, taken as a persistent identifier
        program += [_integer(0), _integers(tensor.shape), _integers(strides), b"\x89"]  # requires no gradient
        program += [_name("collections", "OrderedDict"), empty_tuple, call, b"t", call]  # no hooks
    program += [set_items]
    for name, value in text.items():
        program += [_unicode(name), _unicode(value)]
    return b"".join([*program, set_items, b"."])


def _unicode(value: str) -> bytes:
    data = value.encode("utf-8")
    return b"X" + struct.pack("<I", len(data)) + data


def _name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode("ascii")


def _integer(value: int) -> bytes:
    data = value.to_bytes(8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _integers(values: Any) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"

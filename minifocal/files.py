"""Reading and writing whole files, with errors that a user can act on."""

import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from minifocal.errors import InputError, one_line


def cannot_read(path: Path, error: OSError) -> InputError:
    """Make the error for a file that the operating system would not read."""
    return InputError(f"cannot read {path}: {error.strerror or error}; check the path and its permissions")


def check_regular(path: Path) -> None:
    """Refuse what has no end, or would be waited for: only a regular file is read.

    Raises:
        InputError: it is a folder, a pipe or a device, or cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise cannot_read(path, error) from error
    if not stat.S_ISREG(mode):
        raise InputError(f"cannot read {path}: it is no regular file; give a file")


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a whole file of at most `limit` bytes.

    Raises:
        InputError: it cannot be read, is no regular file, or is larger: nothing is read then.
    """
    check_regular(path)
    try:
        size = path.stat().st_size
        if size > limit:
            raise InputError(f"{path} has {size} bytes, expected at most {limit}; is this the right file?")
        return path.read_bytes()
    except OSError as error:
        raise cannot_read(path, error) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Write `path` wholly or not at all: gives a temporary name beside it, renamed at the end.

    Whatever goes wrong inside the `with` block leaves neither the temporary file nor a changed `path`.
    """
    partial = path.with_name(f"{path.name}.part{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears as `path` wholly or not at all, as `atomic_path` does."""
    with atomic_path(path) as partial, partial.open("wb") as file:
        yield file


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Make the folder of `path`; what the operating system refuses inside the `with` block becomes an InputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file wholly or not at all; make its folder first.

    Raises:
        InputError: the folder cannot be made or written to; what was there before stands.
    """
    with saving(path), atomic_writer(path) as file:
        file.write(content)


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write arrays and texts as a safetensors file, wholly or not at all; make its folder first.

    Raises:
        InputError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        with saving(path), atomic_path(path) as partial:
            save_file({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}, partial, metadata)
    except SafetensorError as error:  # how the library passes on what the operating system said
        raise InputError(f"cannot write {path}: {one_line(str(error))}; choose another folder") from error


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Write the files of a folder together: gives a temporary folder beside it, whose files are moved there at the end.

    Whatever goes wrong inside the `with` block leaves neither the temporary folder nor a changed `path`. Files of
    `path` that have no successor stay.
    """
    partial = path.with_name(f"{path.name}.part{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        if path.is_dir():
            for file in sorted(partial.iterdir()):
                os.replace(file, path / file.name)
        else:
            os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

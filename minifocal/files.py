"""Reading and writing whole files, with errors that a user can act on."""

import errno
import os
import platform
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import BinaryIO

import numpy as np

from minifocal.errors import InputError, one_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MAX_HEADER_BYTES = 2**24
"""Of a safetensors file. Names and shapes of the largest variant take 100,000, a run of 10,000 epochs 3,000,000."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
    except ValueError as error:  # of a name with a zero byte
        raise InputError(f"cannot read {path}: no file can have this name; check it") from error
    if not stat.S_ISREG(mode):
        raise InputError(f"cannot read {path}: it is no regular file; give a file")


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a whole file of at most `limit` bytes.

    Raises:
        InputError: it cannot be read, is no regular file, is larger (nothing is read then), or has no end.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise InputError(f"{path} has {size} bytes, expected at most {limit}; is this the right file?")
            content = file.read(size)
            if file.read(1):  # some files of the system say 0, and may go on for ever
                raise InputError(f"{path} has more than the {size} bytes that it says; read it when it is finished")
    except OSError as error:
        raise cannot_read(path, error) from error
    return content


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Write `path` wholly or not at all: gives a temporary name beside it, renamed at the end.

    Whatever goes wrong inside the `with` block leaves neither the temporary file nor a changed `path`. The file is on
    the disk before it has its name, so that a power cut leaves the old file or the new one, never an empty one.
    """
    partial = _partial(path)
    # A process of this number that was killed may have left one, which may be another name of a file that counts.
    partial.unlink(missing_ok=True)
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.part{os.getpid()}")


def _sync(path: Path) -> None:
    """Wait until a file is on the disk: what the operating system could not write after all is an error here."""
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, where a folder can be opened for that."""
    with suppress(OSError):
        _sync(path)


def atomic_link(source: Path, path: Path) -> None:
    """Make `path` another name of a file, at once; a copy of it where the file system has no hard links."""
    with atomic_path(path) as partial:
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)


def remove_partials(path: Path) -> None:
    """Remove what writers of `path` left under temporary names when they were killed; call it when none is alive."""
    for partial in path.parent.glob(f"{escape(path.name)}.part*"):
        if partial.name.removeprefix(f"{path.name}.part").isdecimal():
            partial.unlink(missing_ok=True)


@contextmanager
def only_one(path: Path, what: str) -> Iterator[bool]:
    """Hold a lock file while the `with` block lasts; refuse where another process holds it.

    The lock is the kernel's: it ends with the process, however that ends. The file stays, and nothing follows from it.

    Args:
        path: of the lock file, which holds the number of the process and its host. what: is locked, for the message.
    Returns:
        whether it is held: without fcntl (Windows), and on a file system without locks, it is not, and nobody is
        refused.
    Raises:
        InputError: another process holds it, the file cannot be written, or it is a link.
    """
    if fcntl is None:
        yield False
        return
    linked = InputError(f"{path} is a link: what is written there would be written elsewhere; delete it")
    with saving(path):
        if path.is_symlink():
            raise linked
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise linked
        yield _lock(descriptor, path, what)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, what: str) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = one_line(os.pread(descriptor, 200, 0).decode(errors="replace")).strip() or "another process"
        raise InputError(f"{what} is in use by {holder}; wait for it, or stop it first") from error
    except OSError:
        return False
    with saving(path):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
    return True


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears as `path` wholly or not at all, as `atomic_path` does."""
    with atomic_path(path) as partial, partial.open("wb") as file:
        yield file


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Make the folder of `path`; what the operating system refuses inside the `with` block becomes an InputError."""
    try:
        _make_folder(path.parent)
        yield
    except OSError as error:
        remedy = "make room there, or choose another folder" if error.errno in NO_ROOM else "choose another folder"
        raise InputError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error


def _make_folder(path: Path) -> None:
    """Make a folder and those around it, as far as they are missing; wait until their names are on the disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        _sync_folder(folder.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file wholly or not at all; make its folder first.

    Raises:
        InputError: the folder cannot be made or written to; what was there before stands.
    """
    with saving(path), atomic_writer(path) as file:
        file.write(content)


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write arrays and texts as a safetensors file, wholly or not at all; make its folder first.

    The library gives the bytes and the file is ours: where its own `save_file` is killed it leaves files under names of
    its own, and what it has written only the owner may read.

    Args:
        path: of the file. tensors: integers, floating-point numbers or booleans, by name. metadata: beside them.
    Raises:
        InputError: it cannot be written.
    """
    from safetensors.numpy import save

    content = save({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}, dict(metadata))
    write_bytes(path, content)


def safetensors_header_length(file: BinaryIO) -> int:
    """Read the first eight bytes of a safetensors file: how many bytes of header follow.

    Raises:
        ValueError: there are none, or the header would be larger than any is. The library reads up to 100 MB, which
            take a gigabyte once they are Python's objects.
    """
    start = file.read(8)
    if len(start) < 8:
        raise ValueError(f"it has {len(start)} bytes")
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header claims {length} bytes, expected at most {MAX_HEADER_BYTES}")
    return length


def contiguous_bytes(array: np.ndarray) -> memoryview:
    """Give the bytes of an array's elements in their order, the lowest byte of each first; a view where it can be."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Write the files of a folder together: gives a temporary folder beside it, whose files are moved there at the end.

    Whatever goes wrong inside the `with` block leaves neither the temporary folder nor a changed `path`. Files of
    `path` that have no successor stay.
    """
    partial = _partial(path)
    shutil.rmtree(partial, ignore_errors=True)  # of a process of this number that was killed
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in partial.iterdir():
            _sync(file)
        if path.is_dir():
            for file in sorted(partial.iterdir()):
                os.replace(file, path / file.name)
            _sync_folder(path)
        else:
            os.replace(partial, path)
            _sync_folder(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

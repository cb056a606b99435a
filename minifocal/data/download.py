"""Fetching the public data sets: checked against their checksums, wholly or not at all."""

import gzip
import hashlib
import http.client
import io
import os
import shutil
import ssl
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from minifocal.errors import InputError, one_line
from minifocal.files import atomic_writer

MAX_DOWNLOAD_BYTES = 2**28
MAX_UNPACKED_BYTES = 2**29  # of a whole archive; CIFAR's have 187 MB
CHUNK_BYTES = 2**18
TIMEOUT_SECONDS = 30

Progress = Callable[[str, int, int | None], None]
"""Called with the file's name, the bytes so far and all bytes (None where the server does not say)."""


@dataclass(frozen=True)
class PublicFile:
    """One file to fetch.

    Attributes:
        url: where it is; its last part is the file's name.
        md5: its checksum in hexadecimal, as published. It guards against damage, not against an attacker.
        members: files to unpack from it, if it is a tar archive.
    """

    url: str
    md5: str
    members: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's name, without folders."""
        return self.url.rpartition("/")[2]


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
_CIFAR = "https://www.cs.toronto.edu/~kriz/"

PUBLIC: Mapping[str, tuple[PublicFile, ...]] = {
    "mnist": (
        PublicFile(f"{_MNIST}train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        PublicFile(f"{_MNIST}train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
        PublicFile(f"{_MNIST}t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
        PublicFile(f"{_MNIST}t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
    "fashion-mnist": (
        PublicFile(f"{_FASHION}train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        PublicFile(f"{_FASHION}train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
        PublicFile(f"{_FASHION}t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
        PublicFile(f"{_FASHION}t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
    "cifar10": (
        PublicFile(
            f"{_CIFAR}cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
            tuple(
                f"cifar-10-batches-py/{name}"
                for name in (
                    *(f"data_batch_{number}" for number in range(1, 6)),
                    "test_batch",
                    "batches.meta",
                )
            ),
        ),
    ),
    "cifar100": (
        PublicFile(
            f"{_CIFAR}cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
            ("cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta"),
        ),
    ),
}


def cache_folder() -> Path:
    """Where fetched data is kept: $MINIFOCAL_DATA, or "minifocal" in the user's cache folder.

    Raises:
        InputError: there is neither, nor a home folder.
    """
    if chosen := os.environ.get("MINIFOCAL_DATA"):
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minifocal"
    except RuntimeError as error:
        raise InputError("there is no home folder to keep data in; set MINIFOCAL_DATA to a folder") from error


def fetch(
    name: str,
    folder: Path | str | None = None,
    progress: Progress | None = None,
    public: Mapping[str, tuple[PublicFile, ...]] = PUBLIC,
) -> Path:
    """Fetch a public data set and give the folder that holds it.

    Files that are there already with the right checksum are not fetched again. Each file appears under its
    name only when it is complete and its checksum is right. A server must have a certificate that this machine trusts
    (SSL_CERT_FILE names others to trust), and may send on to https only.

    Args:
        name: a key of `public`.
        folder: where to put the files; None for `cache_folder()` / name.
        progress: called after every part of a download.
        public: what can be fetched.
    Raises:
        InputError: another name, no network, a server that is not trusted, a file larger than 256 MiB or with a wrong
            checksum, an archive with unexpected contents, or a folder that cannot be written.
    """
    if name not in public:
        raise InputError(f"expected one of {', '.join(public)} to fetch, got {name!r}")
    folder = cache_folder() / name if folder is None else Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in public[name]:
            target = folder / file.name
            is_new = not (target.is_file() and _md5(target) == file.md5)
            if is_new:
                _download(file, target, progress)
            if is_new or not all((folder / member).is_file() for member in file.members):
                _unpack(target, file.members)
    except OSError as error:
        raise InputError(
            f"cannot read and write in {folder}: {error.strerror or error}; choose another folder"
        ) from error
    return folder


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _download(file: PublicFile, target: Path, progress: Progress | None) -> None:
    by_hand = f"fetch {file.url} by hand and put it at {target}"
    digest = hashlib.md5(usedforsecurity=False)
    done = 0
    with atomic_writer(target) as output, closing(_chunks(file.url, by_hand)) as chunks:
        for chunk, total in chunks:
            done += len(chunk)
            if done > MAX_DOWNLOAD_BYTES:
                raise InputError(f"{file.url} has more than {MAX_DOWNLOAD_BYTES} bytes; {by_hand}")
            digest.update(chunk)
            output.write(chunk)
            if progress is not None:
                progress(file.name, done, total)
        if digest.hexdigest() != file.md5:
            raise InputError(
                f"{file.url}: expected MD5 {file.md5}, got {digest.hexdigest()} for {done} bytes; "
                "nothing was kept, try again"
            )


class _EncryptedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a server to https only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        """Refuse any other kind of address."""
        if urlsplit(newurl).scheme != "https":
            fp.close()
            raise InputError(f"{req.full_url} sends on to {newurl}, which is not encrypted: refused; try later")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _chunks(url: str, by_hand: str) -> Generator[tuple[bytes, int | None], None, None]:
    """Read a URL part by part, each with the number of all bytes where the server tells it."""
    try:
        trusted = urllib.request.HTTPSHandler(context=ssl.create_default_context())
        opener = urllib.request.build_opener(trusted, _EncryptedRedirects)
        with opener.open(url, timeout=TIMEOUT_SECONDS) as response:
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() and len(length) < 16 else None
            while chunk := response.read(CHUNK_BYTES):
                yield chunk, total
    except urllib.error.HTTPError as error:
        error.close()
        raise InputError(f"the server answered {error.code}; try later, or {by_hand}") from error
    except InputError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:  # the last one of a redirect to no address
        if isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError):
            raise InputError(f"{url}: the server does not prove who it is ({error}); nothing was fetched") from error
        raise InputError(f"no network, or the server did not answer ({one_line(str(error))}); {by_hand}") from error


class _Bounded(io.RawIOBase):
    """A stream that ends with an error when more is read of it than a limit, or on and on behind its end."""

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        super().__init__()
        self.stream, self.left, self.reads_behind = stream, limit, 0

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes."""
        content = self.stream.read(self.left + 1 if size < 0 else min(size, self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            raise InputError(f"the archive unpacks to more than {MAX_UNPACKED_BYTES} bytes; delete it")
        self.reads_behind += not content
        if self.reads_behind > 2:  # tarfile goes on to where a member claims to end, be it in a thousand years
            raise EOFError("it ends within a member")
        return content


def _unpack(archive: Path, members: tuple[str, ...]) -> None:
    """Unpack `members` beside the archive, each to the name that is expected and to no other."""
    if not members:
        return
    missing = set(members)
    try:
        with (
            gzip.open(archive) as unpacked,
            # As a stream: a header that leads backwards ends it, and nothing is read twice.
            tarfile.open(fileobj=_Bounded(unpacked, MAX_UNPACKED_BYTES), mode="r|") as tar,
        ):
            for entry in tar:
                path = PurePosixPath(entry.name)
                if path.is_absolute() or ".." in path.parts:
                    raise InputError(f"{archive}: refused an archive with the name {entry.name!r}; delete it")
                if entry.name not in missing:
                    continue
                content = tar.extractfile(entry) if entry.isfile() else None
                if content is None or entry.size > MAX_DOWNLOAD_BYTES:
                    raise InputError(f"{archive}: {entry.name!r} is no plain file of a sensible size; delete it")
                target = archive.parent / entry.name
                target.parent.mkdir(exist_ok=True)
                with content, atomic_writer(target) as output:
                    shutil.copyfileobj(content, output)
                missing.remove(entry.name)
    except InputError:
        raise
    except (
        tarfile.TarError,
        gzip.BadGzipFile,
        EOFError,
        zlib.error,
        ArithmeticError,
        LookupError,
        ValueError,
    ) as error:
        # Of headers that make no sense tarfile raises what its parts raise.
        raise InputError(f"{archive}: the archive is damaged ({error}); delete it and fetch again") from error
    if missing:
        raise InputError(f"{archive}: the archive has no {', '.join(sorted(missing))}; delete it and fetch again")

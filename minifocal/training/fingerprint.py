"""What must be the same in all ranks, in a few characters each: code, versions, network, training, data."""

import hashlib
import json
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from minifocal.arrays import Array, as_numpy, is_on_host
from minifocal.data.dataset import Dataset
from minifocal.errors import InputError
from minifocal.files import contiguous_bytes
from minifocal.fused import gpu
from minifocal.layers.base import Layer
from minifocal.training.ranks import Ranks

SOURCES = (".py", ".cu", ".cuh")
LIBRARIES = ("numpy", "numba", "scipy", "mpi4py", "cupy", "cupy-cuda12x", "cupy-cuda13x")
ALIKE = "install and copy the same on every machine"
SHOWN = 12  # characters of a digest that a message shows


def fingerprint(model: Layer, train: Dataset, validation: Dataset, settings: Any) -> dict[str, str]:
    """Give what ranks are compared by, by name.

    Args:
        model: to train, and how it computes. train, validation: images. settings: of the run, as JSON can hold them.
    """
    network = [model.describe(), model.ops.name, model.ops.precision]
    on_device = not is_on_host(next(model.parameters()).data)
    return {
        "code": _digest_of_code(),
        "versions": ", ".join(f"{name} {found}" for name, found in _versions().items()),
        "network": _digest_of_json(network),
        "sums": "by NCCL" if on_device and gpu.has_nccl() else "by MPI",
        "training images": digest([train.images, train.labels]),
        "validation images": digest([validation.images, validation.labels]),
        "settings": _digest_of_json(settings),
    }


def check_same(ranks: Ranks, values: dict[str, str], advice: str = ALIKE) -> None:
    """Refuse ranks in which something is not as in the first one.

    Args:
        ranks: who is compared. values: what, by name. advice: what to do.
    Raises:
        InputError: in every rank the same; it names the ranks and what differs first.
    """
    everyone = ranks.gather(values)
    for name, first in everyone[0].items():
        others = [rank for rank, theirs in enumerate(everyone) if theirs.get(name) != first]
        if others:
            there = everyone[others[0]].get(name)
            who = ranks.names[others[0]] + (f" and {len(others) - 1} more" if len(others) > 1 else "")
            raise InputError(f"{who}: {name} differ from rank 0's ({_short(there)}; rank 0: {_short(first)}); {advice}")


def digest(arrays: Iterable[Array]) -> str:
    """Give the SHA-256 of arrays, in hexadecimal: of their types, shapes and bytes."""
    total = hashlib.sha256()
    for array in map(as_numpy, arrays):
        total.update(f"\n{array.dtype.name} {array.shape}\n".encode())
        total.update(contiguous_bytes(array))
    return total.hexdigest()


def _digest_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digest_of_code() -> str:
    total = hashlib.sha256()
    for name, source in sorted(_sources(files("minifocal"), "")):
        total.update(f"\n{name}\n".encode())
        total.update(source.read_bytes())
    return total.hexdigest()


def _sources(folder: Traversable, name: str) -> Iterable[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        path = f"{name}/{entry.name}"
        if entry.is_dir():
            yield from _sources(entry, path)
        elif entry.name.endswith(SOURCES):
            yield path, entry


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _short(value: str | None) -> str:
    return "nothing" if value is None else value if " " in value else value[:SHOWN]

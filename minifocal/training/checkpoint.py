"""Checkpoints: one safetensors file that holds weights, optimizer state and everything else to go on from.

Numbers keep their exact dtype. A file is written under another name and then renamed, so that at no moment there is
half a checkpoint. A checksum over all of it tells a file that was damaged later. Nothing in a file is ever executed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minifocal.arrays import Array, as_numpy
from minifocal.errors import InputError, is_integer, one_line, shown
from minifocal.files import cannot_read, contiguous_bytes, safetensors_header_length, write_safetensors
from minifocal.layers.base import Layer
from minifocal.training.loss_scale import LossScaler
from minifocal.training.optim import Optimizer

FORMAT = "minifocal checkpoint 2"
FORMAT_WITHOUT_CHECKSUM = "minifocal checkpoint 1"  # else the same
METADATA = "minifocal"  # where in a safetensors file's metadata the rest stands, as JSON
CHECKSUM = "minifocal.sha256"  # and beside it what `checksum` gives
MOST_STEPS = 2**53  # more could not be counted in float64
MODEL, OPTIMIZER, SCALER = "model.", "optimizer.", "scaler."  # prefixes of the arrays' names


class DamagedCheckpointError(InputError):
    """A file is no checkpoint any more, or never was one."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        path: of the file.
        description: what `Layer.describe` of the saved model gave.
        model: values of the parameters, by name.
        optimizer: arrays of the optimizer, by name. steps: that it had made.
        scaler: arrays of the loss scaler, by name; none where there was none.
        meta: whatever else was saved, by name.
    """

    path: Path
    description: dict[str, Any]
    model: dict[str, Array]
    optimizer: dict[str, Array]
    scaler: dict[str, Array]
    steps: int
    meta: dict[str, Any]

    def restore(self, model: Layer, optimizer: Optimizer | None = None, scaler: LossScaler | None = None) -> None:
        """Copy the values into a model of the same shape, into its optimizer and its loss scaler.

        A scaler that the file knows nothing of stays as it is: the run was not in float16 before.

        Raises:
            InputError: the file is of another model or optimizer; nothing has been changed then.
        """
        try:
            model.check_state_dict(self.model)
            if optimizer is not None:
                optimizer.check_state_dict(self.optimizer)
            if scaler is not None and self.scaler:
                scaler.check_state_dict(self.scaler)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error
        model.load_state_dict(self.model)
        if optimizer is not None:
            optimizer.load_state_dict(self.optimizer, self.steps)
        if scaler is not None and self.scaler:
            scaler.load_state_dict(self.scaler)


def save_checkpoint(
    path: str | Path,
    model: Layer,
    optimizer: Optimizer | None = None,
    scaler: LossScaler | None = None,
    **meta: Any,
) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: of the file; its folder is made.
        model: its `describe()` goes into the file too. optimizer, scaler: their state, where given.
        meta: anything that JSON can hold.
    Raises:
        InputError: the folder cannot be written to.
    """
    states = {MODEL: model, OPTIMIZER: optimizer, SCALER: scaler}
    arrays = {
        prefix + name: as_numpy(array)
        for prefix, part in states.items()
        if part is not None
        for name, array in part.state_dict().items()
    }
    steps = optimizer.steps if optimizer is not None else 0
    header = {"format": FORMAT, "description": model.describe(), "steps": steps, "meta": meta}
    text = json.dumps(header)
    write_safetensors(Path(path), arrays, {METADATA: text, CHECKSUM: checksum(text, arrays)})


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint into host memory.

    Raises:
        DamagedCheckpointError: the file does not hold what was written, or no checkpoint of this package.
        InputError: no such file, it cannot be read, or a newer version wrote it.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        with path.open("rb") as start:
            safetensors_header_length(start)
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, ValueError, AttributeError, TypeError) as error:  # the last two of types that NumPy lacks
        raise _damaged(path, error) from error
    except OSError as error:
        raise cannot_read(path, error) from error
    header = read_header(metadata, arrays, path)
    return Checkpoint(
        path,
        header["description"],
        _under(MODEL, arrays),
        _under(OPTIMIZER, arrays),
        _under(SCALER, arrays),
        header["steps"],
        header["meta"],
    )


def read_header(metadata: dict[str, str], arrays: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Read the header of a checkpoint, "description", "steps" and "meta", once its checksum is right.

    Args:
        metadata: of the safetensors file. arrays: all that it holds, or what NumPy can read as arrays.
        path: to name it in an error.
    Raises:
        DamagedCheckpointError: the checksum is another, or this package did not write it.
        InputError: a newer version wrote it.
    """
    try:
        text = metadata[METADATA]
        found = metadata.get(CHECKSUM)
        if found is not None and found != checksum(text, arrays):
            raise DamagedCheckpointError(f"{path} is damaged: its checksum is of other numbers; use another checkpoint")
        header = json.loads(text)
        if header["format"] not in (FORMAT, FORMAT_WITHOUT_CHECKSUM):
            raise InputError(f"{path} is a {shown(header['format'])}; this version reads {FORMAT!r}")
        if header["format"] == FORMAT and found is None:
            raise ValueError("it has no checksum")
        for name, kind in (("description", dict), ("steps", int), ("meta", dict)):
            if not isinstance(header[name], kind):
                raise TypeError(f"{name} is no {kind.__name__}")
        if not is_integer(header["steps"]) or not 0 <= header["steps"] < MOST_STEPS:
            raise ValueError(f"steps is {shown(header['steps'])}")
        return {name: header[name] for name in ("description", "steps", "meta")}
    except InputError:
        raise
    except (KeyError, TypeError, RecursionError, ValueError) as error:
        raise _damaged(path, error) from error


def checksum(header: str, arrays: Mapping[str, Any]) -> str:
    """Give the SHA-256 of a header and of arrays, in hexadecimal: of their names, types, shapes and bytes."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.update(f"\n{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(contiguous_bytes(array))
    return digest.hexdigest()


def _damaged(path: Path, error: Exception) -> DamagedCheckpointError:
    reason = one_line(str(error))[:200]
    return DamagedCheckpointError(f"{path} is no checkpoint that minifocal wrote, or it is damaged: {reason}")


def _under(prefix: str, arrays: dict[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

"""What was measured for a picture, kept as JSON: a picture is drawn from its record, not from a new measurement."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from minifocal.errors import InputError
from minifocal.files import read_bytes, write_bytes

LARGEST_RECORD = 2**20  # bytes; the largest that is written has 82,000
LONGEST = 200  # letters of a text
MOST = 1e30  # an axis to larger numbers cannot be drawn

T = TypeVar("T")


def rounded(values: Any, digits: int = 3) -> Any:
    """Round to significant digits, as lists that JSON can hold: more than a picture shows is not kept.

    Args:
        values: a number or an array of any shape. digits: significant ones, at least 1.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim:
        return [rounded(value, digits) for value in array]
    return float(f"{float(array):.{digits - 1}e}")


def numbers(values: Any, *shape: int | None) -> np.ndarray:
    """Read an array of numbers of a given shape, out of a record that may hold anything.

    Args:
        values: nested lists. shape: of the array; None where any length will do.
    Raises:
        ValueError: another shape, or something else than numbers between -MOST and MOST.
    """
    array = np.array(values, dtype=np.float64)
    fits = len(shape) == array.ndim and all(n in (None, have) for n, have in zip(shape, array.shape, strict=True))
    if not fits or not array.size or not (np.abs(array) < MOST).all():
        raise ValueError(f"expected numbers of shape {shape} and below {MOST}, got shape {array.shape}")
    return array


def positive(values: Any, *shape: int | None) -> np.ndarray:
    """Read as `numbers` does, for an axis that is logarithmic. Raises ValueError also for what is not above 0."""
    array = numbers(values, *shape)
    if array.min() <= 0.0:
        raise ValueError(f"expected numbers above 0, got {array.min()}")
    return array


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record, a line for each list of numbers.

    Raises:
        InputError: the file cannot be written.
        ValueError: a number is not finite.
    """
    write_bytes(path, (_lines(record) + "\n").encode())


def read_record(path: Path, convert: Callable[[dict[str, Any]], T], again: str) -> T:
    """Read a record and convert it.

    Args:
        path: of the file. convert: raises what an unexpected structure raises.
        again: the command that writes the file again.
    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    content = read_bytes(path, LARGEST_RECORD)
    try:
        record = json.loads(content)
        _check_texts(record)
        return convert(record)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not hold what is drawn from it; write it again with {again}") from error


def _check_texts(value: Any) -> None:
    """Refuse a text that would not be drawn as it is: a dollar sign begins a formula, and other signs have no glyph."""
    if isinstance(value, str):
        if len(value) > LONGEST or "$" in value or not value.isprintable():
            raise ValueError(f"a text that no picture shows: {value[:LONGEST]!r}")
    elif isinstance(value, dict | list):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_texts(item)


def _lines(value: Any, indent: str = "") -> str:
    """JSON whose lists of plain values take one line each: short to read, and to compare from one time to the next."""
    inner = indent + " "
    if isinstance(value, dict):
        items = [f"{inner}{json.dumps(key)}: {_lines(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, list | dict) for item in value):
        return "[\n" + ",\n".join(inner + _lines(item, inner) for item in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)

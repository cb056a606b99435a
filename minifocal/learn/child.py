"""Call a learner's function, in a process of its own: a script that knows NumPy and cannot import minifocal.

    python child.py FOLDER

FOLDER holds what to call (calls.json, calls.bin, as `pack` writes values); what came of it is written beside it
(results.json, results.bin). Nothing here judges: the numbers go back to the process that does.
"""

import contextlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

LARGEST_ARRAY = 2**24  # bytes; the exercises' arrays have a few thousand
MEMORY = 4 * 2**30
LARGEST_FILE = 2**26
MESSAGE = 300  # characters kept of an error's text
NUMBERS = "iufc"  # kinds of dtype; truth values are none, they cannot be subtracted


def pack(value: Any, blob: bytearray) -> Any:
    """Describe a value for JSON: numbers and tuples as they are, arrays as bytes put behind `blob`, others by name."""
    if isinstance(value, np.ndarray | np.generic):
        if type(value) is not np.ndarray and not isinstance(value, np.generic):
            return {"other": type(value).__name__}
        array = np.asarray(value)
        if array.dtype.kind not in NUMBERS or array.nbytes > LARGEST_ARRAY:
            return {"other": f"array of {array.dtype} with {array.size} elements"}
        start = len(blob)
        blob += array.tobytes()
        return {"array": [array.dtype.str, array.shape, start]}
    if type(value) in (bool, int, float):
        return {"number": value}
    if isinstance(value, tuple):  # a NamedTuple too
        return {"tuple": [pack(item, blob) for item in value]}
    return {"other": type(value).__name__}


def unpack(packed: Any, blob: bytes, copy: bool = False) -> Any:
    """Give the value that `pack` described. A value of another type becomes an `Other`.

    Without `copy` arrays look at the blob: however often one is described, it takes no memory of its own.
    """
    ((kind, content),) = packed.items()
    if kind == "array":
        dtype, shape, start = content
        size = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(blob, np.dtype(dtype), size, start).reshape(shape)
        return array.copy() if copy else array
    if kind == "tuple":
        return tuple(unpack(item, blob, copy) for item in content)
    return Other(content) if kind == "other" else content


class Other:
    """A value that is neither a number nor an array of numbers nor a tuple of them."""

    def __init__(self, name: str) -> None:
        self.name = str(name)[:MESSAGE]


def describe_error(error: BaseException, path: str) -> dict[str, Any]:
    """Say what was raised, and in which line of the learner's file."""
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == path:
            line = frame.lineno
    try:
        message = str(error.msg if isinstance(error, SyntaxError) else error)
    except Exception:  # an error of the learner's own, whose text cannot be made
        message = ""
    return {"type": type(error).__name__, "message": message[:MESSAGE], "line": line if type(line) is int else None}


def run(folder: Path) -> dict[str, Any]:
    """Load the learner's file and make every call."""
    request = json.loads((folder / "calls.json").read_text(encoding="utf-8"))
    blob = (folder / "calls.bin").read_bytes()
    path, sent_back = request["path"], bytearray()
    results: list[dict[str, Any]] = []
    sys.modules["minifocal"] = None  # type: ignore[assignment]  # what is to be written by hand is not there to call
    answer: dict[str, Any] = {"results": results}
    try:
        function = runpy.run_path(path, run_name="exercise").get(request["function"])
    except BaseException as error:  # whatever a learner's file raises, exits included, is part of the answer
        return {**answer, "error": describe_error(error, path)}
    if not callable(function):
        return {**answer, "missing": True}
    for call in request["calls"]:
        arguments = [unpack(argument, blob, copy=True) for argument in call]
        try:
            value = function(*arguments)
        except BaseException as error:
            results.append({"error": describe_error(error, path)})
            break
        if not results:
            silence()
        after = [pack(argument, sent_back) for argument in arguments]
        results.append({"value": pack(value, sent_back), "after": after})
    (folder / "results.bin").write_bytes(sent_back)
    return answer


def silence() -> None:
    """Send what is printed from now on nowhere: one call's worth is enough to read."""
    with contextlib.suppress(Exception):  # a learner's code may have closed or replaced them
        sys.stdout.flush()
        sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def limit_resources() -> None:
    """Bound memory and files, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    here = Path(sys.argv[1])
    limit_resources()
    content = json.dumps(run(here))
    (here / "results.json").write_text(content, encoding="utf-8")
    silence()
    os._exit(0)  # threads that a learner's code has left do not keep it alive

"""Run a learner's code where it can do no harm to the judgement: in a process of its own, with a time limit.

The numbers that it computes come back as bytes, and are judged here. This bounds accidents (loops without an end,
memory, prints, exits); it is no fence against code that means harm, which runs with the rights of whoever runs it.
Whatever such code leaves, the judgement ends with a verdict.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minifocal.errors import one_line
from minifocal.files import read_bytes
from minifocal.learn import child
from minifocal.learn.child import Other, pack, unpack

TIME_LIMIT = 10.0  # seconds for all calls of an exercise together, the start of Python included
LARGEST_RESULTS = 2**20  # bytes of results.json, whose arrays stand in another file
PRINTED = 2000  # characters kept of what a learner's code prints


@dataclass(frozen=True)
class Failure:
    """What a learner's code raised, and in which line of the file."""

    kind: str
    message: str
    line: int | None

    def __str__(self) -> str:
        place = "" if self.line is None else f" in line {self.line}"
        return f"{self.kind}{place}: {self.message}" if self.message else f"{self.kind}{place}"


@dataclass(frozen=True)
class Result:
    """What one call gave, and what became of the arguments; or what it raised."""

    value: Any = None  # an array, a number, a tuple of these, or Other
    after: tuple[Any, ...] = ()
    failure: Failure | None = None


@dataclass(frozen=True)
class Answers:
    """What came of running a learner's file.

    Attributes:
        results: one for each call, up to the first that raised.
        failure: what loading the file raised.
        trouble: another reason for which there are no results.
        printed: what the code printed until its first call had ended, the beginning.
    """

    results: tuple[Result, ...] = ()
    failure: Failure | None = None
    trouble: str = ""
    printed: str = ""


def call(path: Path, function: str, calls: Sequence[Sequence[Any]], time_limit: float = TIME_LIMIT) -> Answers:
    """Load a file in a new process and call one of its functions, several times.

    Args:
        path: the learner's file. function: the name of the function.
        calls: the arguments of each call: arrays, numbers, tuples of numbers.
        time_limit: seconds for everything; then the process and what it started are killed.
    """
    # The learner's code knows the folder, and may have taken it away.
    with tempfile.TemporaryDirectory(prefix="minifocal-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        blob = bytearray()
        packed = [[pack(argument, blob) for argument in arguments] for arguments in calls]
        request = {"path": str(path.resolve()), "function": function, "calls": packed}
        (folder / "calls.json").write_text(json.dumps(request), encoding="utf-8")
        (folder / "calls.bin").write_bytes(blob)
        with (folder / "printed").open("w+b") as printed:
            status = _run([sys.executable, "-P", child.__file__, str(folder)], printed.fileno(), time_limit)
            printed.seek(0)
            text = printed.read(PRINTED).decode(errors="replace")
        if folder.is_symlink():  # put there in its place: neither to be read nor to be left behind
            folder.unlink()
        if status is None:
            trouble = f"it did not end within {time_limit:g} seconds: a loop without an end?"
            return Answers(trouble=trouble, printed=text)
        try:
            return _read(folder, function, text)
        except Exception:  # the learner's code could have written anything there
            return Answers(trouble=f"it ended Python before it gave a result (exit status {status})", printed=text)


def _run(command: list[str], output: int, time_limit: float) -> int | None:
    """Give the exit status, or None when the time was over. What it started in its own session ends with it."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,  # so that it can be killed together with what it started
    )
    try:
        return process.wait(time_limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()


def _read(folder: Path, function: str, printed: str) -> Answers:
    """Read the results. The learner's code could have written anything there: what does not fit raises."""
    answer = json.loads(read_bytes(folder / "results.json", LARGEST_RESULTS))
    if "error" in answer:
        return Answers(failure=_failure(answer["error"]), printed=printed)
    if answer.get("missing"):
        return Answers(trouble=f"it has no function {function}: keep the name of the stub", printed=printed)
    blob = read_bytes(folder / "results.bin", child.LARGEST_FILE)
    return Answers(tuple(_result(result, blob) for result in answer["results"]), printed=printed)


def _result(result: dict[str, Any], blob: bytes) -> Result:
    if "error" in result:
        return Result(failure=_failure(result["error"]))
    return Result(_array(unpack(result["value"], blob)), tuple(unpack(after, blob) for after in result["after"]))


def _array(value: Any) -> Any:
    """Numbers as arrays without axes, so that what follows knows arrays only."""
    if isinstance(value, tuple):
        return tuple(map(_array, value))
    if isinstance(value, Other):
        return Other(one_line(value.name))
    array = np.asarray(value)
    return array if array.dtype.kind in child.NUMBERS else Other(f"array of {array.dtype}")


def _failure(error: dict[str, Any]) -> Failure:
    line = error["line"]
    kind, message = (one_line(str(error[key])[: child.MESSAGE]) for key in ("type", "message"))
    if "minifocal" in message and kind == "ModuleNotFoundError":
        message = "the exercise is to be solved with NumPy alone; minifocal cannot be imported here"
    return Failure(kind, message, line if isinstance(line, int) else None)

"""What a whole process costs: its peak memory while training, and how long it takes to start."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from minifocal.bench.candidates import prepare
from minifocal.bench.measure import NotMeasuredError, interleave
from minifocal.bench.workloads import MODES, Workload

T = TypeVar("T")

STEPS = 3
STARTS = 5  # of each command
STATUS = Path("/proc/self/status")


def in_new_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a Python of its own, with this one's environment, and give what it returns.

    Raises:
        NotMeasuredError: the process was ended. What the function raises is raised here.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise NotMeasuredError("a process was ended while it measured, perhaps for want of memory") from error


def peak_memory(candidate: str, workload: Workload) -> int:
    """Measure the peak resident memory of a new process that makes three training steps, in the system's unit.

    Raises:
        NotMeasuredError: this system does not tell, or the process was ended.
    """
    return in_new_process(_train_and_tell, candidate, workload)


def start_up(torch: bool, progress: Callable[[], object] = lambda: None) -> dict[str, list[float]]:
    """Time new processes that import NumPy, import this package, print its help and, if asked for, import PyTorch."""
    imports = ["numpy", "minifocal", *(["torch"] if torch else [])]
    commands = {f"import {name}": ["-c", f"import {name}"] for name in imports}
    commands["minifocal --help"] = ["-m", "minifocal", "--help"]

    def start(arguments: list[str]) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    return interleave({name: start(arguments) for name, arguments in commands.items()}, STARTS, progress)


def _train_and_tell(candidate: str, workload: Workload) -> int:
    step = prepare(candidate, workload, MODES["train"])
    for _ in range(STEPS):
        step()
    return _peak_resident()


def _peak_resident() -> int:
    # Linux hands the peak of getrusage on from the process that started this one; that of /proc is this one's own.
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    try:
        import resource
    except ImportError as error:
        raise NotMeasuredError("this system does not tell the peak memory of a process") from error
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

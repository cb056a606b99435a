"""Small trainings for the harnesses of crash safety: forked from a process that is warm, and compared.

The process that forks must have started no threads; importing this sets the number of BLAS threads to 1.
"""

import contextlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"  # before NumPy is loaded

import tqdm  # noqa: E402

from minifocal import load_checkpoint  # noqa: E402
from minifocal.cli import main  # noqa: E402
from minifocal.training.checkpoint import Checkpoint  # noqa: E402
from minifocal.training.run_folder import BEST, CHECKPOINTS, CONFIG, LAST, METRICS  # noqa: E402

tqdm.tqdm.monitor_interval = 0  # no thread

CLOCK = ("seconds", "images_per_second")
NETWORK = ["--patch-size", "4", "--hidden-size", "6", "--layers", "2", "--focal-levels", "1", "--drop-path-rate", "0.3"]
TRAINING = ["--batch-size", "512", "--shift", "1"]
EXECUTION = ["--ops", "numpy"]  # is given again: the same bits need the same table


def options(optimizer: str, epochs: int, seed: int) -> list[str]:
    """Give the options of a training on the digits, with augmentation and drop path."""
    return [*NETWORK, *TRAINING, "--optimizer", optimizer, "--epochs", str(epochs), "--seed", str(seed)]


def command(folder: Path, settings: list[str]) -> list[str]:
    """Give the command line with which a person would begin a run, or go on with it once its settings are kept."""
    begun = (folder / CONFIG).exists()
    return ["train", "--out", str(folder), *EXECUTION, *(["--resume"] if begun else settings)]


def warm_up(work: Path) -> None:
    """Train for an epoch, so that forked processes need not import or compute anything for the first time."""
    with (work / "warm.log").open("w") as log, contextlib.redirect_stdout(log):
        status = main(command(work / "warm", options("sgd", 1, seed=0)))
    assert status == 0, f"see {log.name}"
    assert threading.active_count() == 1, "a thread would be missing in forked processes"


def start(arguments: list[str], log: Path, prepare: Any = None) -> int:
    """Run the command line in a forked process, its output appended to a file; give the process's number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        if prepare is not None:
            prepare()
        status = main(arguments)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def finish(child: int) -> int:
    """Wait for a forked process; give its exit status, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def look(folder: Path) -> None:
    """Fail where a run's folder has no last checkpoint that loads, once it had one, or more than one leftover."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if there & set(CHECKPOINTS):
        load_checkpoint(folder / LAST)
    for name in there & set(CHECKPOINTS):
        load_checkpoint(folder / name)
    leftovers = sorted(name for name in there if ".part" in name)
    assert len(leftovers) <= 1, f"{folder} piles up {leftovers}"


def differences(one: Path, two: Path) -> list[str]:
    """Say in what two finished runs differ, apart from the time that they took: nothing, where no bit does."""
    found = []
    for name in (LAST, BEST):
        a, b = (load_checkpoint(folder / name) for folder in (one, two))
        other = [part for part, value in parts(a).items() if value != parts(b).get(part)]
        found += [f"{name}: {len(other)} parts, such as {other[0]}"] if other else []
    metrics = [(folder / METRICS).read_text().splitlines() for folder in (one, two)]
    if len({json.dumps([_without_clock(json.loads(line)) for line in lines]) for lines in metrics}) > 1:
        found.append(METRICS)
    if (one / CONFIG).read_bytes() != (two / CONFIG).read_bytes():
        found.append(CONFIG)
    return found + [f"{two} keeps {path.name}" for path in two.iterdir() if ".part" in path.name]


def parts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Give all that a checkpoint holds, as values that can be compared, but for the time that was taken."""
    arrays = {"model": checkpoint.model, "optimizer": checkpoint.optimizer, "scaler": checkpoint.scaler}
    bits = {
        f"{part} {name}": (str(array.dtype), array.shape, array.tobytes())
        for part, by_name in arrays.items()
        for name, array in by_name.items()
    }
    names = {part: sorted(by_name) for part, by_name in arrays.items()}
    rest = {"steps": checkpoint.steps, "description": checkpoint.description, "meta": _without_clock(checkpoint.meta)}
    return {**bits, **names, **rest}


def _without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_clock(part) for name, part in value.items() if name not in CLOCK}
    return [_without_clock(part) for part in value] if isinstance(value, list) else value

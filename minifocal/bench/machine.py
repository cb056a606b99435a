"""What the numbers were measured on: cores, threads, versions; of a GPU also the day."""

import datetime
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from minifocal.arrays import describe_gpus
from minifocal.threads import core_count, thread_count


def describe_machine() -> dict[str, Any]:
    """Give the processor, cores, threads and the versions of what computes."""
    versions = _versions("numpy", "numba", "torch", "transformers")
    return {"cpu": _cpu(), "cores": core_count(), "threads": thread_count(), "versions": versions}


def describe_gpu() -> dict[str, Any]:
    """Give the GPU, its driver, the versions of what computes, and the day: times are of a GPU on a day."""
    versions = _versions("numpy", "cupy-cuda12x", "cupy-cuda13x", "torch", "transformers")
    return {"gpu": describe_gpus(), "date": datetime.date.today().isoformat(), "cpu": _cpu(), "versions": versions}


def _versions(*names: str) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())

"""What the numbers were measured on: cores, threads, versions. No date: the same machine gives the same description."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from minifocal.threads import core_count, thread_count


def describe_machine() -> dict[str, Any]:
    """Give the processor, cores, threads and the versions of what computes."""
    versions = {"python": platform.python_version()}
    for name in ("numpy", "numba", "torch", "transformers"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"cpu": _cpu(), "cores": core_count(), "threads": thread_count(), "versions": versions}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())

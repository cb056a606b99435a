"""Who joins whom, what is refused then, who speaks when ranks fail; what MPI and NCCL are asked, on stand-ins."""

import signal
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from strict_array import StrictLibrary
from thread_ranks import together

from minifocal import threads
from minifocal.cli import ranks as cli_ranks
from minifocal.cli import train
from minifocal.cli.common import failure
from minifocal.errors import InputError
from minifocal.fused import gpu
from minifocal.training import fingerprint as module
from minifocal.training import ranks as ranks_module
from minifocal.training.fingerprint import check_same, digest
from minifocal.training.ranks import (
    ALONE,
    LAUNCHED,
    LAUNCHED_SIZE,
    FirstRankError,
    MpiRanks,
    Ranks,
    RanksError,
    join_ranks,
)
from minifocal.training.trainer import TrainingError


class Request:
    """Is done when it is asked for the third time, or never."""

    def __init__(self, done=lambda: None, never=False):
        self.asked, self.done, self.never = 0, done, never

    def Test(self):  # noqa: N802  # MPI's name
        self.asked += 1
        if self.asked == 3 and not self.never:
            self.done()
        return self.asked >= 3 and not self.never


class Comm:
    """A communicator of two ranks, whose other one has and says the same."""

    rank, size = 0, 2

    def __init__(self, never=False, kinds=None):
        self.never, self.kinds, self.calls = never, kinds, []

    def Dup(self):  # noqa: N802
        return self

    def Split_type(self, kind):  # noqa: N802
        return self

    def Ibarrier(self):  # noqa: N802
        return Request(never=self.never)

    def Ibcast(self, array):  # noqa: N802
        return Request()

    def Iallreduce(self, where, array, op="SUM"):  # noqa: N802
        assert where == "IN_PLACE"
        self.calls.append((type(array).__name__, op))

        def double():
            if op == "SUM":
                array[...] = array * 2

        return Request(double, never=self.never)

    def Get_info(self):  # noqa: N802
        return SimpleNamespace(Get=lambda key: self.kinds if key == "mpi_memory_alloc_kinds" else None)

    def bcast(self, value):
        return value

    def allgather(self, value):
        return [value, value]

    def Abort(self, status):  # noqa: N802
        raise SystemExit(status)


class Other(Comm):
    """The other rank of the two."""

    rank = 1

    def __init__(self, said):
        super().__init__()
        self.said = said

    def bcast(self, value):
        assert value == (None, None)
        return self.said


def fail(error):
    raise error


def mpi(**options):
    """A stand-in for the module of mpi4py."""
    comm = options.pop("comm", None) or Comm()
    names = {
        "COMM_WORLD": comm, "IN_PLACE": "IN_PLACE", "MAX": "MAX", "COMM_TYPE_SHARED": 0, "THREAD_SERIALIZED": 2,
        "Query_thread": lambda: 3, "Get_library_version": lambda: "A library of MPI, of which\nthere are many",
    }  # fmt: skip
    return SimpleNamespace(**{**names, **options})


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    for name in (*LAUNCHED, *LAUNCHED_SIZE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_sharing", [1])
    monkeypatch.setattr(threads, "_blas_controller", lambda: SimpleNamespace(limit=lambda **_: None))
    yield
    threads.thread_count.cache_clear()


@pytest.fixture
def mpi4py(monkeypatch):
    """Let `from mpi4py import MPI` give what is put there."""

    def put(MPI):
        package = ModuleType("mpi4py")
        if MPI is not None:
            package.MPI = MPI
        monkeypatch.setitem(sys.modules, "mpi4py", package)

    return put


def test_a_process_that_no_launcher_started_is_alone_and_needs_no_mpi(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert join_ranks() is ALONE
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "1")
    assert join_ranks() is ALONE


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_process_that_was_launched_needs_mpi4py(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setenv(name, "0")
    with pytest.raises(InputError, match=r'mpi4py is missing: install it with pip install "minifocal\[mpi\]"'):
        join_ranks()


def test_an_mpi4py_that_finds_no_library_is_told_in_one_line(monkeypatch, mpi4py):
    class Broken(ModuleType):
        def __getattr__(self, name):
            raise RuntimeError("cannot load MPI library\nlibmpi.so.12: no such file\n")

    monkeypatch.setitem(sys.modules, "mpi4py", Broken("mpi4py"))
    monkeypatch.setenv("PMI_RANK", "0")
    with pytest.raises(InputError, match=r"^mpi4py finds no MPI \(cannot load MPI library\): install one, such as pip"):
        join_ranks()


@pytest.mark.parametrize("name", LAUNCHED_SIZE)
def test_a_launcher_of_another_mpi_is_refused(name, monkeypatch, mpi4py):
    mpi4py(mpi())
    monkeypatch.setenv(name.replace("SIZE", "RANK"), "0")
    monkeypatch.setenv(name, "4")
    with pytest.raises(InputError, match=r"started 4 processes, but mpi4py sees 2 \(it uses A library of MPI.*same"):
        join_ranks()
    monkeypatch.setenv(name, "2")
    assert join_ranks().size == 2


def test_a_world_of_one_is_alone(monkeypatch, mpi4py):
    comm = Comm()
    comm.size = 1
    mpi4py(mpi(comm=comm))
    monkeypatch.setenv("PMIX_RANK", "0")
    assert join_ranks() is ALONE


def test_cores_are_shared_among_those_that_have_the_same(monkeypatch):
    monkeypatch.setattr(threads, "affinity", lambda: frozenset(range(12)))
    for name in threads.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    threads.thread_count.cache_clear()
    assert threads.thread_count() == 12
    limits = []
    monkeypatch.setattr(threads, "_blas_controller", lambda: SimpleNamespace(limit=lambda **o: limits.append(o)))
    threads.share_cores(1)
    assert (threads.thread_count(), limits) == (12, [])
    threads.share_cores(5)
    assert threads.thread_count() == 2
    assert limits == [{"limits": 2, "user_api": "blas"}]
    threads.share_cores(40)
    assert threads.thread_count() == 1
    monkeypatch.setattr(threads, "_sharing", [1])
    monkeypatch.setattr(ranks_module, "affinity", lambda: frozenset(range(12)))
    MpiRanks(mpi())
    assert threads.thread_count() == 6
    bound = Comm()
    bound.allgather = lambda value: [value, frozenset({20, 21})]
    MpiRanks(mpi(comm=bound))
    assert threads.thread_count() == 12


def test_what_ranks_say_goes_through_mpi():
    ranks = MpiRanks(mpi())
    assert (ranks.rank, ranks.size, ranks.overlaps) == (0, 2, True)
    assert ranks.names[0].startswith("rank 0 (process ")
    assert ranks.any(True)
    assert not ranks.any(False)
    numbers = np.array([1.0, 2.5])
    np.testing.assert_array_equal(ranks.sum(numbers), [2.0, 5.0])
    np.testing.assert_array_equal(numbers, [1.0, 2.5])
    assert ranks.from_first(lambda: "said") == "said"
    with pytest.raises(InputError, match="no"):
        ranks.from_first(lambda: fail(InputError("no")))
    with pytest.raises(OSError, match="full"):
        ranks.from_first(lambda: fail(OSError("full")))
    other = MpiRanks(mpi(comm=Other((None, (True, "no such folder")))))
    with pytest.raises(InputError, match="no such folder"):
        other.from_first(lambda: fail(AssertionError("not asked")))
    other = MpiRanks(mpi(comm=Other((None, (False, "a bug")))))
    with pytest.raises(FirstRankError, match="a bug"):
        other.from_first(lambda: None)
    assert not MpiRanks(mpi(Query_thread=lambda: 1)).overlaps
    with pytest.raises(SystemExit):
        ranks.abort(3)


def test_who_waits_too_long_gives_up():
    ranks = MpiRanks(mpi())
    ranks.patience = 0.0
    with pytest.raises(RanksError, match="waited 0 s for the other ranks; is one of them stopped"):
        ranks.wait(Request(never=True))
    assert ranks.all_fail("why", 1.0) == ["why", "why"]
    ranks._failures.never = True
    assert ranks.all_fail("why", 0.02) is None


def device_array(values):
    return StrictLibrary().asarray(np.array(values))


def test_arrays_on_a_device_go_through_the_host_where_there_is_nothing_better(monkeypatch):
    monkeypatch.setattr(gpu, "has_nccl", lambda: False)
    array = device_array([1.0, 2.0])
    ranks = MpiRanks(mpi())
    total = ranks.start_sum(array)
    total.poll()
    total.wait()
    np.testing.assert_array_equal(array.get(), [2.0, 4.0])
    assert ranks._sums.calls[-1] == ("ndarray", "SUM")


def test_an_mpi_that_takes_the_memory_of_a_device_gets_the_array_once_it_is_computed(monkeypatch):
    monkeypatch.setattr(gpu, "has_nccl", lambda: False)
    waited = []
    monkeypatch.setattr(gpu, "synchronize", lambda: waited.append(True))
    array = device_array([1.0, 2.0])
    ranks = MpiRanks(mpi(comm=Comm(kinds="mpi,system,cuda:device")))
    ranks.start_sum(array).wait()
    np.testing.assert_array_equal(array.get(), [2.0, 4.0])
    assert waited == [True]
    assert ranks._sums.calls[-1] == (type(array).__name__, "SUM")


class Streams:
    """CuPy's streams and NCCL's group, which note what they are asked, in order."""

    def __init__(self, monkeypatch):
        self.asked = []
        note = self.asked.append

        class Stream:
            def __init__(self, name="own", non_blocking=False):
                assert name == "current" or non_blocking
                self.name = name

            def record(self):
                return f"event of {self.name}"

            def wait_event(self, event):
                note(f"{self.name} waits for {event}")

            def synchronize(self):
                note(f"host waits for {self.name}")

        class Group:
            def all_reduce(self, source, target, stream):
                assert source is target
                note(f"sum in {stream.name}")
                source[...] = source + source

        def init_process_group(size, rank, use_mpi):
            note(f"group of {size}, rank {rank}, by {'MPI' if use_mpi else 'TCP'}")
            return Group()

        current = Stream("current")
        cuda = SimpleNamespace(Stream=Stream, get_current_stream=lambda: current, nccl=SimpleNamespace(available=True))
        monkeypatch.setattr(gpu, "import_cupy", lambda: SimpleNamespace(cuda=cuda))
        package, distributed = ModuleType("cupyx"), ModuleType("cupyx.distributed")
        distributed.init_process_group = init_process_group
        monkeypatch.setitem(sys.modules, "cupyx", package)
        monkeypatch.setitem(sys.modules, "cupyx.distributed", distributed)


def test_nccl_sums_beside_the_computation_and_what_follows_waits_for_it(monkeypatch):
    streams = Streams(monkeypatch)
    array = device_array([1.0, 2.0])
    ranks = MpiRanks(mpi())
    sums = [ranks.start_sum(array), ranks.start_sum(array)]
    sums[0].poll()
    for under_way in sums:
        under_way.wait()
    np.testing.assert_array_equal(array.get(), [4.0, 8.0])
    begin = ["own waits for event of current", "sum in own"]
    assert streams.asked == [
        "group of 2, rank 0, by MPI", *begin, *begin, *["current waits for event of own"] * 2,
    ]  # fmt: skip
    assert ranks._sums.calls == []
    gpu.synchronize()
    assert streams.asked[-1] == "host waits for current"


# Who speaks


class Failing(Ranks):
    """One of three ranks, whose others fail too, or do not."""

    def __init__(self, rank, together, first=None):
        self.rank, self.size, self.together, self.first = rank, 3, together, first
        self.names = [f"rank {number}" for number in range(3)]
        self.aborted, self.met = None, 0

    def all_fail(self, reason, grace):
        self.met += 1
        return [self.first or reason, reason, reason] if self.together else None

    def abort(self, status):
        self.aborted = status


FAILURES = (
    (InputError("no such folder"), "no such folder", 2),
    (TrainingError("the loss is nan"), "the loss is nan", 1),
    (RanksError("waited"), "waited", 1),
    (KeyboardInterrupt(), "interrupted", 130),
    (MemoryError("7 GiB"), "not enough memory: 7 GiB; make the network, the images or the batch smaller", 2),
    (OSError(28, "No space left", "a.txt"), "No space left: a.txt", 2),
)


@pytest.mark.parametrize(("error", "said", "status"), FAILURES, ids=[type(error).__name__ for error, *_ in FAILURES])
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("all_fail", [False, True])
def test_the_first_rank_speaks_for_all_and_each_for_itself(error, said, status, rank, all_fail, monkeypatch, capsys):
    ranks = Failing(rank, all_fail)
    monkeypatch.setattr(cli_ranks, "join_ranks", lambda: ranks)

    def body(given):
        assert given is ranks
        print("heard")
        raise error

    assert cli_ranks.run_in_ranks("train", body) == status == failure(error)[1]
    out, err = capsys.readouterr()
    assert out == ("heard\n" if rank == 0 else "")
    alone = f"minifocal train: rank {rank} failed, the job ends: {said}\n"
    assert err == (alone if not all_fail else f"minifocal train: {said}\n" if rank == 0 else "")
    assert ranks.aborted == (None if all_fail and isinstance(error, InputError) else status)
    assert ranks.met == (2 if all_fail else 1)  # those that say nothing wait for those that do


def test_another_reason_than_the_first_ranks_is_said_too(monkeypatch, capsys):
    for error, said in (
        (MemoryError("7 GiB"), "minifocal train: rank 2: not enough memory: 7 GiB; make"),
        (FirstRankError("No space left"), ""),
        (InputError("no such"), ""),  # the first one says more of the same
    ):
        monkeypatch.setattr(cli_ranks, "join_ranks", lambda: Failing(2, True, "no such folder"))
        cli_ranks.run_in_ranks("train", lambda ranks, error=error: fail(error))
        err = capsys.readouterr().err
        assert err.startswith(said)
        assert err.count("\n") == (1 if said else 0)


def test_what_other_ranks_print_may_be_any_text(monkeypatch):
    monkeypatch.setattr(cli_ranks, "join_ranks", lambda: Failing(1, False))
    assert cli_ranks.run_in_ranks("train", lambda ranks: print("x\udcff", "Ä") or 0) == 0


def test_a_late_signal_ends_nobody_while_all_leave():
    ranks, met = Failing(1, True), []
    ranks.any = lambda flag: met.append(flag) or flag
    before = signal.getsignal(signal.SIGTERM)
    with cli_ranks.leaving_together(ranks):
        signal.raise_signal(signal.SIGTERM)
        assert met == []
    assert met == [False]
    assert signal.getsignal(signal.SIGTERM) is before
    with cli_ranks.leaving_together(ALONE):
        assert signal.getsignal(signal.SIGTERM) is before


def test_a_bug_is_told_with_its_traceback(monkeypatch, capsys):
    monkeypatch.setattr(cli_ranks, "join_ranks", lambda: Failing(1, False))
    assert cli_ranks.run_in_ranks("train", lambda ranks: 1 // 0) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert failure(ZeroDivisionError()) is None


def test_one_alone_is_left_alone(monkeypatch):
    monkeypatch.setattr(cli_ranks, "join_ranks", lambda: ALONE)
    assert cli_ranks.run_in_ranks("train", lambda ranks: 7) == 7
    with pytest.raises(KeyError):
        cli_ranks.run_in_ranks("train", lambda ranks: {}["missing"])
    assert cli_ranks.launch_command(ALONE) == ""
    assert cli_ranks.launch_command(Failing(0, True)) == "mpiexec -n 3 "


def test_each_rank_of_a_machine_has_a_device_of_its_own(monkeypatch):
    assert cli_ranks.device_of_rank("cuda:1", ALONE) == "cuda:1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(cli_ranks.platform, "node", lambda: "a")
    ranks = Failing(2, True)
    ranks.gather = lambda seen: [("b", "0,1"), ("a", "0,1"), seen, ("a", "0,1")]
    assert cli_ranks.device_of_rank("cpu", ranks) == "cpu"
    assert cli_ranks.device_of_rank("cuda", ranks) == "cuda:1"
    with pytest.raises(InputError, match="3 ranks of a machine cannot share cuda:0: give --device cuda"):
        cli_ranks.device_of_rank("cuda:0", ranks)
    ranks.gather = lambda seen: [("b", "0,1"), ("a", "1"), seen]
    assert cli_ranks.device_of_rank("cuda", ranks) == "cuda:0"
    assert cli_ranks.device_of_rank("cuda:1", ranks) == "cuda:1"


def test_options_that_differ_are_named():
    def check(ranks):
        options = SimpleNamespace(run=object(), micro_batch=ranks.rank, seed=3)
        cli_ranks.check_alike(options, ranks)

    with pytest.raises(InputError, match=r"rank 1 and 1 more: the values of --micro-batch differ .* \(1; rank 0: 0\)"):
        together(3, check)


def test_an_interrupt_of_several_ranks_is_told_and_goes_on_to_the_end_of_the_job(tmp_path, capsys):
    """It ends in `run_in_ranks`, which ends the others."""
    execution = {"device": "cpu", "ops": "numpy", "precision": "float32", "micro_batch": 8}
    args = SimpleNamespace(**execution, live=None, recompute_levels=False, graph=False, check_finite=False)
    for ranks, before in ((Failing(0, True), "mpiexec -n 3 "), (ALONE, "")):
        trainer = SimpleNamespace(ranks=ranks, fit=lambda: fail(KeyboardInterrupt()))
        given = args, trainer, None, tmp_path, "", lambda trainer: nullcontext()
        if ranks is ALONE:
            assert train._fit(*given) == 130
        else:
            with pytest.raises(KeyboardInterrupt):
                train._fit(*given)
        command = f"{before}minifocal train --resume --out {tmp_path} --ops numpy --micro-batch 8"
        assert capsys.readouterr().out == f"stopped at once; the last checkpoint stands, go on with: {command}\n"


def test_one_alone_fails_alone(monkeypatch):
    assert ALONE.all_fail("why", 1.0) == ["why"]
    monkeypatch.setattr(ranks_module.os, "_exit", lambda status: fail(SystemExit(status)))
    with pytest.raises(SystemExit):
        ALONE.abort(3)


def test_where_the_system_tells_no_cores_of_a_process_it_has_all(monkeypatch):
    monkeypatch.delattr(threads.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 5)
    assert threads.affinity() == frozenset(range(5))
    assert threads.core_count() == 5


# Fingerprints


def test_a_fingerprint_is_of_code_versions_and_arrays(monkeypatch, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder / "inside").mkdir(parents=True)
        (tmp_path / folder / "inside" / "layer.py").write_text("x = 1\n")
        (tmp_path / folder / "kernels.cu").write_text("// kernel\n")
        (tmp_path / folder / "digits.npz").write_text(folder)  # no code
    found = []
    for folder in ("a", "b"):
        monkeypatch.setattr(module, "files", lambda name, folder=folder: tmp_path / folder)
        found.append(module._digest_of_code())
    assert found[0] == found[1]
    for name, text in (("inside/layer.py", "x = 2\n"), ("kernels.cu", "// other\n"), ("new.py", "")):
        (tmp_path / "b" / name).write_text(text)
        found.append(module._digest_of_code())
    assert len(set(found)) == 4
    versions = module._versions()
    assert {"Python", "numpy"} <= versions.keys()
    a = np.arange(6.0)
    different = [[a], [a.reshape(2, 3)], [a.astype("float32")], [a[::-1]], [a[:3], a[3:]]]
    assert len({digest(arrays) for arrays in different}) == len(different)
    assert digest([a.reshape(2, 3).T.copy().T]) == digest([a.reshape(2, 3)])


def test_what_a_rank_lacks_is_named_too():
    def check(ranks):
        check_same(ranks, {"code": "x" * 40, **({"data": "y"} if ranks.is_first else {})})

    with pytest.raises(InputError, match=r"rank 1: data differ from rank 0's \(nothing; rank 0: y\)"):
        together(2, check)
    check_same(ALONE, {"code": "x"})

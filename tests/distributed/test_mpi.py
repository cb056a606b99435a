"""Real ranks under MPI: the same losses, the bytes of a ring, and a clear end when one of them fails."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from mpi_jobs import HERE, MISSING, ROOT, command, environment, mpiexec, run, succeed

import minifocal as mf

if mpiexec() is None:
    pytest.skip(MISSING, allow_module_level=True)

TOLERANCE = {"float32": 1e-6, "float64": 1e-12}  # relative, of the loss of each of 50 steps
OVER_TCP = {
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "tcp,self",
    "OMPI_MCA_btl_tcp_if_include": "lo",  # Open MPI
    "MPIR_CVAR_NOLOCAL": "1",
    "MPIR_CVAR_CH4_NETMOD": "ofi",
    "FI_PROVIDER": "tcp",  # MPICH
}
SMALL = ("--hidden-size", "16", "--layers", "1", "--drop-path-rate", "0.2", "--dtype", "float64", "--ops", "numpy")


@pytest.fixture(scope="module")
def losses_alone(tmp_path_factory):
    return json.loads(succeed(command(1, HERE / "mpi_losses.py"), tmp_path_factory.mktemp("alone")))["losses"]


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_losses_of_50_steps_do_not_depend_on_the_number_of_ranks(ranks, losses_alone, tmp_path):
    found = json.loads(succeed(command(ranks, HERE / "mpi_losses.py"), tmp_path))
    assert found["ranks"] == ranks
    assert found["losses"].keys() == losses_alone.keys()
    for name, alone in losses_alone.items():
        assert len(alone) == 50
        assert alone[-1] < alone[0]
        np.testing.assert_allclose(found["losses"][name], alone, rtol=TOLERANCE[name.split()[1]], err_msg=name)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells how much a socket has sent")
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_step_sends_the_bytes_of_a_ring(ranks, tmp_path):
    found = json.loads(succeed(command(ranks, HERE / "mpi_bytes.py"), tmp_path, **OVER_TCP))
    assert found["buckets"] > 2
    np.testing.assert_allclose(found["sent"], 2 * (ranks - 1) / ranks, rtol=0.05)


def train(ranks, *options):
    return command(ranks, "-m", "minifocal", "train", *SMALL, *options)


def test_a_rank_that_is_killed_ends_the_job_which_others_go_on_with(tmp_path):
    job = subprocess.Popen(
        train(3, "--epochs", "6", "--out", "run"), cwd=tmp_path, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with job:
        said = []
        for line in job.stdout:
            said.append(line)
            if line.startswith("epoch   2/"):
                break
        process = re.search(r"rank 1 \(process (\d+) on ", "".join(said))[1]
        os.kill(int(process), signal.SIGKILL)
        more, errors = job.communicate(timeout=30)
    assert job.returncode != 0
    # Open MPI names the rank; MPICH the process, whose rank was said before.
    assert re.search(rf"rank 1 with PID {process} |PID {process} RUNNING AT", more + errors), more + errors
    assert "epoch" in mf.load_checkpoint(tmp_path / "run" / "last.safetensors").meta["progress"]

    succeed(command(2, "-m", "minifocal", "train", "--resume", "--out", "run", "--ops", "numpy"), tmp_path)
    succeed(train(1, "--epochs", "6", "--out", "straight"), tmp_path)
    ends = [mf.load_checkpoint(tmp_path / name / "last.safetensors") for name in ("straight", "run")]
    losses = [[record["train_loss"] for record in end.meta["progress"]["history"]] for end in ends]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(*losses, rtol=1e-12)
    for name, weights in ends[0].model.items():
        np.testing.assert_allclose(ends[1].model[name], weights, rtol=0, atol=1e-11, err_msg=name)


def test_the_same_ranks_give_the_same_bits_and_the_first_one_alone_writes(tmp_path):
    said = [succeed(train(2, "--epochs", "1", "--out", name), tmp_path) for name in ("one", "other")]
    one, other = (mf.load_checkpoint(tmp_path / name / "last.safetensors").model for name in ("one", "other"))
    for name, weights in one.items():
        np.testing.assert_array_equal(other[name], weights, err_msg=name)
    assert said[0].count("test accuracy") == said[0].count("epoch   1/1") == 1
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert files == {
        "best.safetensors", "last.safetensors", "previous.safetensors", "config.json", "metrics.jsonl", "curves.png",
        "run.lock",
    }  # fmt: skip


def test_a_folder_that_is_taken_is_refused_in_one_line(tmp_path):
    succeed(train(2, "--epochs", "1", "--out", "run"), tmp_path)
    refused = run(train(2, "--epochs", "1", "--out", "run"), tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.count("minifocal train:") == 1
    assert "run holds a run already; add --resume" in refused.stderr


@pytest.mark.parametrize(
    ("how", "who", "status", "said"),
    [
        (
            "memory",
            "1",
            2,
            r"minifocal failing: rank 1 \(process \d+ on .*\) failed, the job ends: not enough memory: 7",
        ),
        ("input", "0", 2, r"minifocal failing: rank 0 \(process \d+ on .*\) failed, the job ends: no such folder"),
        ("input", "all", 2, r"minifocal failing: no such folder"),
        ("bug", "1", 1, r"rank 1 .* failed, the job ends: Traceback[\s\S]*ZeroDivisionError: a bug"),
        ("first", "nobody", 2, r"minifocal failing: only the first rank knows"),
    ],
)
def test_a_rank_that_fails_says_who_it_is_and_all_end(how, who, status, said, tmp_path):
    done = run(command(3, HERE / "mpi_failing.py", how, who), tmp_path)
    assert done.returncode == status, done.stderr
    assert re.search(said, done.stderr), done.stderr
    assert done.stderr.count("minifocal failing:") == 1
    assert done.stdout.count("heard") == 1


def several(*programs):
    """One rank of each program."""
    words = [["-n", "1", *map(str, words)] for words in programs]
    return [str(mpiexec()), *words[0], *(word for more in words[1:] for word in (":", *more))]


def test_ranks_with_other_options_are_refused(tmp_path):
    words = (sys.executable, "-m", "minifocal", "train", "--out", "run")
    done = run(several([*words, "--seed", "1"], [*words, "--seed", "2"]), tmp_path)
    assert done.returncode == 2
    assert re.search(
        r"minifocal train: rank 1 .*: the values of --seed differ from rank 0's \(2; rank 0: 1\)", done.stderr
    )
    assert not (tmp_path / "run").exists()


def test_ranks_with_other_code_are_refused(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "minifocal", copy / "minifocal", ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "minifocal" / "functional" / "linear.py").open("a") as file:
        file.write("\n# changed\n")
    words = (sys.executable, "-m", "minifocal", "train", *SMALL, "--out", "run")
    done = run(several(words, ["env", f"PYTHONPATH={copy}", *words]), tmp_path)
    assert done.returncode == 2, done.stderr
    assert re.search(r"minifocal train: rank 1 .*: code differ", done.stderr), done.stderr
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_nothing_is_imported_where_nobody_launched_it(tmp_path):
    text = "import sys, minifocal.cli.train, minifocal.training.ranks as r; assert r.join_ranks() is r.ALONE; "
    succeed(command(1, "-c", f"{text} assert 'mpi4py' not in sys.modules"), tmp_path)

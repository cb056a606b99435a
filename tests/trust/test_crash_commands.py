"""`minifocal train` among its own: one run in a folder, signals in a process of its own, lost settings, a full disk."""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from minifocal import load_checkpoint
from minifocal.cli import main
from minifocal.files import only_one
from minifocal.training.run_folder import BEST, CONFIG, LAST, LOCK, METRICS, PREVIOUS

QUICK = ["--hidden-size", "4", "--layers", "1", "--warmup-steps", "2", "--batch-size", "512", "--ops", "numpy"]
SHORT = [*QUICK, "--epochs", "2"]
RESUME = ["train", "--resume", "--ops", "numpy"]


@pytest.fixture(scope="module", autouse=True)
def no_curves():
    """Leave the picture out, which costs as much as the training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minifocal.cli.train.draw_curves", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert main(["train", "--out", str(folder), *SHORT]) == 0
    return folder


@pytest.fixture
def run(straight, tmp_path):
    """A copy of it."""
    subprocess.run(["cp", "-r", str(straight), str(tmp_path / "run")], check=True)
    return tmp_path / "run"


def weights(folder):
    return load_checkpoint(folder / LAST).model


def same_end(one, two):
    """Whether the last weights and the metrics of two runs are the same, apart from the time."""
    a, b = weights(one), weights(two)
    clock = ("seconds", "images_per_second")
    metrics = [[json.loads(line) for line in (folder / METRICS).read_text().splitlines()] for folder in (one, two)]
    told = [[{name: record[name] for name in record if name not in clock} for record in lines] for lines in metrics]
    return all(np.array_equal(a[name], b[name]) for name in a) and told[0] == told[1]


def refused(capsys, *arguments):
    """Run a command that is refused; give the line that says why."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@contextlib.contextmanager
def going_on(*command):
    """Run a process until the block ends; its output, with that to standard error, is read from `stdout`."""
    arguments = [sys.executable, *command]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process, start):
    """Read what a process prints as far as a line that starts so."""
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith(start):
            return
    pytest.fail("".join(seen))


def test_a_second_run_in_a_folder_is_refused_and_sigterm_saves_the_first(tmp_path, capsys):
    folder = tmp_path / "run"
    command = ["-m", "minifocal", "train", "--out", str(folder), *QUICK, "--epochs", "100000", "--lr", "0.001"]
    with going_on(*command) as process:
        wait_for(process, "epoch ")
        assert refused(capsys, *RESUME, "--out", str(folder)) == (
            f"minifocal train: {folder} is in use by process {process.pid} on {platform.node()}; "
            "wait for it, or stop it first\n"
        )
        process.send_signal(signal.SIGTERM)
        *_, last = process.stdout.read().splitlines()
        assert process.wait() == 128 + signal.SIGTERM
    assert last == f"stopped and saved; go on with: minifocal train --resume --out {folder} --ops numpy"
    progress = load_checkpoint(folder / LAST).meta["progress"]
    assert (progress["epoch"], progress["step"]) > (0, 0)


def test_a_run_that_goes_on_is_read_without_asking(run):
    with only_one(run / LOCK, "the run"):
        assert main(["evaluate", str(run)]) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_run_at_once_and_the_last_checkpoint_stands(tmp_path, number):
    """The process waits in a step, which no wish to stop after it could end."""
    with going_on("-c", STUCK, "train", "--out", str(tmp_path / "run"), *SHORT) as process:
        wait_for(process, "in a step")
        process.send_signal(number)
        wait_for(process, "asked to stop")
        process.send_signal(number)
        said = process.stdout.read()
        process.wait()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert said.startswith("stopped at once; the last checkpoint stands, go on with: minifocal train --resume")
    else:
        assert process.returncode == -signal.SIGTERM
    assert load_checkpoint(tmp_path / "run" / LAST).meta["progress"]["epoch"] == 1


STUCK = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
from minifocal.cli import main
from minifocal.files import only_one
from minifocal.training.trainer import Trainer
step = Trainer._step
def stuck(self, batch):
    if self.progress.epoch == 1:
        print("in a step", flush=True)
        while not self._stop:
            time.sleep(0.001)
        print("asked to stop", flush=True)
        time.sleep(1000)
    step(self, batch)
Trainer._step = stuck
sys.exit(main(sys.argv[1:]))
"""


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_at_its_start(straight, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / CONFIG).write_bytes((straight / CONFIG).read_bytes())
    (folder / f"{LAST}.part99999").write_bytes(b"half")
    assert main([*RESUME, "--out", str(folder)]) == 0
    assert f"there is no checkpoint in {folder} yet: the run begins at its start\n" in capsys.readouterr().err
    assert same_end(straight, folder)
    assert not [path for path in folder.iterdir() if ".part" in path.name]


def test_a_damaged_checkpoint_is_said_in_one_line_and_the_run_ends_as_it_would_have(straight, run, capsys):
    (run / LAST).write_bytes((run / LAST).read_bytes()[:-1])
    assert "last.safetensors" in refused(capsys, "evaluate", str(run / LAST))
    assert main([*RESUME, "--out", str(run)]) == 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.endswith("; going on from previous.safetensors, which is whole\n")
    assert same_end(straight, run)


@pytest.mark.parametrize("content", [None, b"", b'{"data": {'], ids=["gone", "empty", "cut"])
def test_settings_that_are_lost_are_taken_from_the_checkpoint(straight, run, capsys, content):
    (run / CONFIG).unlink() if content is None else (run / CONFIG).write_bytes(content)
    (run / METRICS).write_bytes((run / METRICS).read_bytes()[:-7])
    assert main([*RESUME, "--out", str(run)]) == 0
    assert "config.json is lost or damaged: taking the settings that the checkpoint keeps" in capsys.readouterr().err
    assert (run / CONFIG).read_bytes() == (straight / CONFIG).read_bytes()
    assert same_end(straight, run)


def test_settings_that_are_lost_without_a_checkpoint_are_an_error_that_says_what_to_do(run, capsys):
    for name in (LAST, PREVIOUS, BEST):
        (run / name).unlink()
    (run / CONFIG).write_bytes(b"{")
    line = refused(capsys, *RESUME, "--out", str(run))
    assert "holds no run to resume" in line
    assert "config.json" in line
    assert line.endswith(", or start a new run\n")


def test_a_run_of_the_version_before_checksums_is_resumed_to_the_same_end(straight, run):
    with safe_open(run / PREVIOUS, framework="numpy") as file:
        header = json.loads(file.metadata()["minifocal"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del header["meta"]["settings"]
    header["format"] = "minifocal checkpoint 1"
    save_file(arrays, run / LAST, metadata={"minifocal": json.dumps(header)})
    for path in (run / PREVIOUS, run / LOCK):
        path.unlink()
    assert main([*RESUME, "--out", str(run)]) == 0
    assert same_end(straight, run)


def test_a_run_with_any_checkpoint_is_never_written_over(run, capsys):
    (run / LAST).unlink()
    assert "holds a run already; add --resume" in refused(capsys, "train", "--out", str(run), *SHORT)


def test_a_full_disk_ends_a_run_in_one_line_and_with_room_it_goes_on(straight, tmp_path, capsys):
    """A limit on the size of files stands for it: the checkpoint, which grows by a line of history, does not fit."""
    folder = tmp_path / "run"
    limit = (straight / LAST).stat().st_size - 8
    # The limit would be one for coverage.py's file too.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), "train", "--out", str(folder), *SHORT],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        f"minifocal train: cannot write {folder / LAST}: {os.strerror(27)}; make room there, or choose another folder; "
        f"the last checkpoint stands, go on with: minifocal train --resume --out {folder} --ops numpy\n"
    )
    assert not [path for path in folder.iterdir() if ".part" in path.name]
    assert load_checkpoint(folder / LAST).meta["progress"]["epoch"] < 2
    assert main([*RESUME, "--out", str(folder)]) == 0
    assert same_end(straight, folder)


LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from minifocal.cli import main
from minifocal.files import only_one
sys.exit(main(sys.argv[1:]))
"""

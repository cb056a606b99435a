"""`minifocal learn` as a learner and an instructor type it."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minifocal.cli import main
from minifocal.learn.registry import EXERCISES, find_exercise

NORM = find_exercise("06")
FILE = Path("exercises") / NORM.file_name


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def learn(*words: str) -> int:
    return main(["learn", *words])


def test_start_puts_the_stub_there_and_touches_no_answer(capsys):
    assert learn("start", "06", "gelu_backward") == 0
    assert FILE.read_text() == NORM.stub
    assert (Path("exercises") / "03_gelu_backward.py").exists()
    FILE.write_text("mine")
    assert learn("start", "6") == 0
    assert FILE.read_text() == "mine"
    assert "is there already and stays as it is" in capsys.readouterr().out


def test_from_a_stub_over_a_wrong_answer_and_a_hint_to_the_right_one(capsys):
    learn("start", "06")
    capsys.readouterr()
    assert learn("check", "06") == 1
    assert "06 layer_norm_backward: TODO" in capsys.readouterr().out

    FILE.write_text(NORM.solution.replace(" - variance_part)", ")"))
    assert learn("check", "06") == 1
    out = capsys.readouterr().out
    assert "06 layer_norm_backward: not yet\n  dx is wrong; dweight, dbias are right\n" in out
    assert "dx (2, 4, 5): 40 of 40 elements wrong" in out
    assert "yours" in out
    assert "numeric" in out
    assert "diagnosis: the term through the variance is missing" in out
    assert "minifocal learn hint 06" in out

    for shown in (1, 2, 3, 3):
        assert learn("hint", "06") == 0
        out = capsys.readouterr().out
        assert [f"hint {n} of 3:" in out for n in (1, 2, 3)] == [n <= shown for n in (1, 2, 3)]
    assert "minifocal learn solution 06" in out

    FILE.write_text(NORM.solution)
    assert learn("check", "06") == 0
    assert capsys.readouterr().out == "06 layer_norm_backward: passed\n"
    assert learn("list") == 0
    out = capsys.readouterr().out
    assert f"1 of {len(EXERCISES)} passed" in out
    assert [line.split()[-1] for line in out.splitlines() if line.startswith("06")] == ["passed"]


def test_the_solution_comes_when_asked_for_twice(capsys):
    assert learn("solution", "06") == 0
    out = capsys.readouterr().out
    assert out == "there are 3 hints left; ask once more to see the solution: minifocal learn solution 06\n"
    assert learn("solution", "06") == 0
    assert capsys.readouterr().out == NORM.solution


def test_after_all_hints_or_a_pass_the_solution_is_near(capsys):
    for _ in range(3):
        learn("hint", "06")
    learn("solution", "06")
    assert "sure?" in capsys.readouterr().out
    learn("start", "17")
    (Path("exercises") / find_exercise("17").file_name).write_text(find_exercise("17").solution)
    learn("check", "17")
    capsys.readouterr()
    learn("solution", "17")
    assert capsys.readouterr().out == find_exercise("17").solution


def test_reset_keeps_what_was_written(capsys):
    learn("start", "06")
    for text in ("first", "second"):
        FILE.write_text(text)
        assert learn("reset", "06") == 0
        assert FILE.read_text() == NORM.stub
    kept = [FILE.with_name(f"{FILE.name}.{n}").read_text() for n in (1, 2)]
    assert kept == ["first", "second"]
    assert f"your answer so far is {FILE}.2" in capsys.readouterr().out


def test_check_without_a_number_checks_all_that_were_started(capsys):
    assert learn("check") == 2
    assert "there are no exercises in exercises" in capsys.readouterr().err
    learn("start", "16", "17")
    for number in ("16", "17"):
        exercise = find_exercise(number)
        (Path("exercises") / exercise.file_name).write_text(exercise.solution)
    capsys.readouterr()
    assert learn("check") == 0
    assert capsys.readouterr().out == "16 layer_scale_backward: passed\n17 sgd_step: passed\n"


def test_what_an_answer_prints_is_shown(capsys):
    learn("start", "16")
    path = Path("exercises") / find_exercise("16").file_name
    path.write_text(find_exercise("16").solution.replace("    return", "    print('gamma', gamma.shape)\n    return"))
    assert learn("check", "16") == 0
    assert "your code printed, in its first call:\n    gamma (3,)\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "77"], "there is no exercise '77': give a number from 01 to 21"),
        (["start", "../../etc"], "there is no exercise '../../etc'"),
        (["check", "06", "--time-limit", "0"], "--time-limit must lie between 0 and 3600 seconds, got 0"),
        (["check", "06", "--time-limit", "nan"], "--time-limit must lie between"),
        (["grade", "nowhere"], "nowhere: no such folder; give one folder a submission"),
        (["grade", ".", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["grade", ".", "--exercise", "99"], "there is no exercise '99'"),
    ],
)
def test_bad_input_gets_one_line(words, message, capsys):
    assert learn(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("minifocal learn: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_file_where_the_folder_should_be_is_named(capsys):
    Path("exercises").write_text("in the way")
    assert learn("start", "06") == 2
    assert "cannot write exercises/06_layer_norm_backward.py" in capsys.readouterr().err


def test_grade_writes_a_table_and_a_summary(capsys):
    for name, text in (("ann", NORM.solution), ("ben", NORM.stub)):
        (Path("submissions") / name).mkdir(parents=True)
        (Path("submissions") / name / NORM.file_name).write_text(text)
    assert learn("grade", "submissions/ann", "submissions/ben", "--exercise", "06", "--out", "out/grades.csv") == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split() for line in out[1:3]] == [["ann", "1", "0"], ["ben", "0", "1"]]
    with Path("out/grades.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["submission"], row["verdict"]) for row in rows] == [("ann", "passed"), ("ben", "TODO")]


def test_two_submissions_of_one_name_are_refused(capsys):
    for parent in ("a", "b"):
        (Path(parent) / "ann").mkdir(parents=True)
    assert learn("grade", "a/ann", "b/ann") == 2
    assert "two submissions are called ann" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or sys.platform == "win32", reason="needs signals")
def test_watch_checks_again_on_every_save_until_it_passes():
    learn("start", "16")
    exercise = find_exercise("16")
    path = Path("exercises") / exercise.file_name
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "minifocal", "learn", "watch", "16"], stdout=subprocess.PIPE, text=True
    ) as process:
        lines = iter(process.stdout.readline, "")
        assert next(lines).startswith("watching ")
        assert next(lines) == "16 layer_scale_backward: TODO\n"
        path.write_text(exercise.solution.replace("dy * gamma", "dy"))
        for line in lines:
            if "the factor gamma is missing" in line:
                break
        # As many editors save: another file takes its place.
        replacement = path.with_suffix(".new")
        replacement.write_text(exercise.solution)
        os.replace(replacement, path)
        assert "16 layer_scale_backward: passed\n" in list(lines)
        assert process.wait(60) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_ends_watching_quietly():
    learn("start", "16")
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "minifocal", "learn", "watch", "16"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline().startswith("watching ")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == "minifocal learn: interrupted\n"


@pytest.mark.parametrize(
    "content", ["[", "[]", '{"16": 3}', '{"16": {"hints": -1}}', '{"16": {"state": "\\ud800"}}', '{"16": {"more": 1}}']
)
def test_a_progress_file_that_is_none_is_named(content, capsys):
    Path("exercises").mkdir()
    Path("exercises", "progress.json").write_text(content)
    assert main(["learn", "list"]) == 2
    assert capsys.readouterr().err.startswith("minifocal learn: exercises/progress.json is no progress file")


def test_submissions_become_a_table_without_formulas(capsys):
    for name, text in (
        ("=1+1", find_exercise("16").solution),
        ("a\nb", "raise ValueError('= 1')"),
        (" @x", find_exercise("16").stub),
        ("none", ""),
    ):
        Path("given", name).mkdir(parents=True)
        if text:
            Path("given", name, find_exercise("16").file_name).write_text(text, encoding="utf-8")
    folders = sorted(map(str, Path("given").iterdir()))
    assert main(["learn", "grade", "--exercise", "16", "--exercise", "16", "--jobs", "2", *folders]) == 0
    with Path("grades.csv").open(newline="") as file:
        rows = {row["submission"]: row["verdict"] for row in csv.DictReader(file)}
    assert rows == {"' @x": "TODO", "'=1+1": "passed", "a b": "not yet", "none": "not started"}
    assert "4 answers" in capsys.readouterr().out


def test_two_submissions_whose_names_print_alike_are_refused(capsys):
    for name in ("a\tb", "a b"):
        Path(name).mkdir()
    assert main(["learn", "grade", "a\tb", "a b"]) == 2
    assert "two submissions are called a b" in capsys.readouterr().err


def test_a_terminal_without_greek_letters_shows_the_hints():
    command = [sys.executable, "-X", "utf8=0", "-m", "minifocal", "learn", "hint", "03"]
    for _ in range(2):
        done = subprocess.run(
            command,
            capture_output=True,
            env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert done.returncode == 0, done.stderr
    assert rb"\u03c6" in done.stdout


def test_it_works_from_a_wheel_in_an_empty_folder(tmp_path):
    """The stubs, hints and solutions are part of what is installed; and so are the files of pages and kernels."""
    root = Path(__file__).parents[2]
    source = tmp_path / "source"
    names = ("pyproject.toml", "README.md", "LICENSE", "minifocal")
    for name in names:
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy
        copy(root / name, source / name) if name != "pyproject.toml" else (source.mkdir(), copy(root / name, source))
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            ".",
        ],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode and "setuptools" in built.stderr:
        pytest.skip("setuptools is not installed")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    shutil.unpack_archive(wheel, unpacked, "zip")
    for folder in ("viz/pages", "fused", "learn/exercises", "data"):
        here, there = (
            {
                file.relative_to(top)
                for file in (top / "minifocal" / folder).rglob("*")
                if "__pycache__" not in file.parts
            }
            for top in (root, unpacked)
        )
        assert here == there
    for words, status in ((["start", "06"], 0), (["check", "06"], 1), (["hint", "06"], 0)):
        done = subprocess.run(
            [sys.executable, "-m", "minifocal", "learn", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(unpacked)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
    assert (tmp_path / FILE).read_text() == NORM.stub

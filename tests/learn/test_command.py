"""`minifocal learn` on the command line: progress, hints, and a table of many submissions."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from minifocal.cli import main
from minifocal.learn.registry import find_exercise

SCALE = find_exercise("16")


@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_an_exercise_from_start_to_solution(capsys):
    assert main(["learn", "check", "16"]) == 1
    assert "there is no exercises/16_layer_scale_backward.py" in capsys.readouterr().out
    assert main(["learn", "start", "16"]) == 0
    assert main(["learn", "check", "16"]) == 1
    assert main(["learn", "hint", "16"]) == 0
    assert main(["learn", "solution", "16"]) == 0
    assert "there are 2 hints left; ask once more" in capsys.readouterr().out
    assert main(["learn", "solution", "16"]) == 0
    Path("exercises", SCALE.file_name).write_text(capsys.readouterr().out, encoding="utf-8")
    assert main(["learn", "check"]) == 0
    assert main(["learn", "list"]) == 0
    assert "1 of 21 passed" in capsys.readouterr().out
    kept = json.loads(Path("exercises", "progress.json").read_text())
    assert kept == {"16": {"state": "passed", "checks": 2, "hints": 1, "solution_asked": 2}}
    assert main(["learn", "reset", "16"]) == 0
    assert "0 of 21 passed" in [main(["learn", "list"]), capsys.readouterr().out][1]


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
        ("=1+1", SCALE.solution),
        ("a\nb", "raise ValueError('= 1')"),
        (" @x", SCALE.stub),
        ("none", ""),
    ):
        Path("given", name).mkdir(parents=True)
        if text:
            Path("given", name, SCALE.file_name).write_text(text, encoding="utf-8")
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
        done = subprocess.run(command, capture_output=True, env={"PYTHONIOENCODING": "ascii", **_environment()})
        assert done.returncode == 0, done.stderr
    assert rb"\u03c6" in done.stdout


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(filter(None, (str(Path(__file__).parents[2]), *sys.path)))}

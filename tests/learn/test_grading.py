"""Many submissions: every answer gets its line, whatever it holds, and no answer stops the others."""

import csv
import io

import pytest

from minifocal.learn.grading import COLUMNS, as_csv, grade
from minifocal.learn.judge import ABSENT, FAILED, PASSED, TODO
from minifocal.learn.registry import find_exercise

SCALE, SGD = find_exercise("16"), find_exercise("17")


@pytest.fixture
def submissions(tmp_path):
    """Five folders: all right, one wrong, nothing done, one that hangs, and one whose name is a formula."""
    folders = [tmp_path / name for name in ("ann", "ben", "cleo", "dora", "=1+1")]
    for folder in folders:
        folder.mkdir()
        (folder / SCALE.file_name).write_text(SCALE.solution)
    ann, ben, cleo, dora, _ = folders
    (ann / SGD.file_name).write_text(SGD.solution)
    (ben / SGD.file_name).write_text(SGD.solution.replace("weight - lr", "weight + lr"))
    (cleo / SCALE.file_name).write_text(SCALE.stub)
    (dora / SCALE.file_name).write_text("while True:\n    pass\n")
    (dora / SGD.file_name).write_bytes(b"#" * (2**20 + 1))
    return folders


def test_every_answer_gets_its_verdict_in_order(submissions):
    grades = list(grade(submissions, [SCALE, SGD], time_limit=8.0, jobs=3))
    assert [(one.submission, one.exercise.number, one.verdict.state) for one in grades] == [
        ("ann", "16", PASSED),
        ("ann", "17", PASSED),
        ("ben", "16", PASSED),
        ("ben", "17", FAILED),
        ("cleo", "16", TODO),
        ("cleo", "17", ABSENT),
        ("dora", "16", FAILED),
        ("dora", "17", FAILED),
        ("=1+1", "16", PASSED),
        ("=1+1", "17", ABSENT),
    ]
    rows = list(csv.DictReader(io.StringIO(as_csv(grades))))
    assert tuple(rows[0]) == COLUMNS
    assert rows[3]["diagnosis"] == "the step goes up the slope: subtract it"
    assert rows[6]["reason"].startswith("it did not end within 8 seconds")
    assert "is this the right file" in rows[7]["reason"]


def test_no_cell_is_a_formula_or_more_than_a_line(submissions):
    folder = submissions[0]
    body = "raise ValueError('=HYPERLINK(1)\\nsecond,line')"
    (folder / SCALE.file_name).write_text(f"def layer_scale_backward(dy, x, gamma):\n    {body}\n")
    text = as_csv(list(grade([folder, submissions[4]], [SCALE])))
    rows = list(csv.reader(io.StringIO(text)))
    assert len(rows) == len(text.splitlines()) == 3
    assert all(cell[:1] not in ("=", "+", "-", "@") for row in rows for cell in row)
    assert rows[2][0] == "'=1+1"


def test_the_same_verdicts_come_of_any_number_of_jobs(submissions):
    one, three = (list(grade(submissions[:3], [SCALE, SGD], jobs=jobs)) for jobs in (1, 3))
    assert [(g.submission, g.verdict.state) for g in one] == [(g.submission, g.verdict.state) for g in three]

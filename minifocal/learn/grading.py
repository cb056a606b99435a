"""Many submissions at once: each answer is judged in a process of its own, several at a time."""

import csv
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from minifocal.errors import InputError, one_line
from minifocal.learn.judge import FAILED, Verdict, judge
from minifocal.learn.process import TIME_LIMIT
from minifocal.learn.registry import Exercise

COLUMNS = ("submission", "exercise", "name", "verdict", "reason", "diagnosis")


@dataclass(frozen=True)
class Grade:
    """The verdict on one answer of one submission."""

    submission: str
    exercise: Exercise
    verdict: Verdict

    def row(self) -> tuple[str, ...]:
        """Give the cells of `COLUMNS`, safe to open in a spreadsheet."""
        verdict = self.verdict
        diagnosis = verdict.findings[0].diagnosis if verdict.findings else ""
        cells = (
            self.submission,
            self.exercise.number,
            self.exercise.function,
            verdict.state,
            verdict.reason,
            diagnosis,
        )
        return tuple(map(_cell, cells))


def grade(
    folders: Sequence[Path], exercises: Sequence[Exercise], *, time_limit: float = TIME_LIMIT, jobs: int = 1
) -> Iterator[Grade]:
    """Judge every exercise of every folder, in order; an answer that cannot be judged fails and stops nothing.

    Args:
        folders: one a submission, each with answers under the names of the stubs.
        exercises: which to judge.
        time_limit: seconds for each answer.
        jobs: answers that are judged at the same time.
    """
    todo = [(folder, exercise) for folder in folders for exercise in exercises]

    def one(item: tuple[Path, Exercise]) -> Grade:
        folder, exercise = item
        try:
            verdict = judge(exercise, folder / exercise.file_name, time_limit)
        except InputError as error:
            verdict = Verdict(FAILED, str(error))
        return Grade(one_line(folder.name or str(folder)), exercise, verdict)

    # Threads are enough: each waits for a process.
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(one, todo)


def as_csv(grades: Sequence[Grade]) -> str:
    """Give a CSV file with a line for each answer."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(grade.row() for grade in grades)
    return text.getvalue()


def _cell(text: str) -> str:
    """One line, and no formula: a spreadsheet computes what begins with one of these signs, behind spaces too."""
    text = one_line(text)
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") else text

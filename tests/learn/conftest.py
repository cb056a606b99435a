"""What the tests of the exercises share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from minifocal.learn.judge import Verdict, judge
from minifocal.learn.registry import find_exercise


@pytest.fixture
def judged(tmp_path: Path) -> Callable[..., Verdict]:
    """Judge an answer given as text."""

    def judged(number: str, text: str, time_limit: float = 30.0) -> Verdict:
        exercise = find_exercise(number)
        path = tmp_path / exercise.file_name
        path.write_text(text, encoding="utf-8")
        return judge(exercise, path, time_limit)

    return judged

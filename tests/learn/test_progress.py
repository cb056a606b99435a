"""What is kept of a learner: one file, whole or not at all, and never anything that runs."""

import json

import pytest

from minifocal.errors import InputError
from minifocal.learn.progress import FILE_NAME, Record, load_progress


def test_a_new_learner_has_none_and_it_comes_back_as_it_was_saved(tmp_path):
    progress = load_progress(tmp_path / "new")
    assert progress.records == {}
    progress["06"].checks = 3
    progress["06"].state = "passed"
    progress["01"].hints = 2
    progress.save()
    again = load_progress(tmp_path / "new")
    assert again.records == {"01": Record(hints=2), "06": Record(state="passed", checks=3)}
    assert [path.name for path in (tmp_path / "new").iterdir()] == [FILE_NAME]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"[1]",
        b"3",
        b"null",
        b"{",
        b"\xff\xfe",
        b'{"06": 3}',
        b'{"06": {"stars": 5}}',
        b'{"06": {"state": 1}}',
        b'{"06": {"checks": "many"}}',
        b'{"06": {"hints": -1}}',
        b'{"06": {"hints": true}}',
        b"[" * 100_000,
    ],
)
def test_a_file_of_another_kind_is_refused_and_stays(content, tmp_path):
    path = tmp_path / FILE_NAME
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no progress file: mend it, or delete it"):
        load_progress(tmp_path)
    assert path.read_bytes() == content


def test_an_enormous_file_is_not_read(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(b" " * (2**20 + 1))
    with pytest.raises(InputError, match="expected at most"):
        load_progress(tmp_path)


def test_what_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    progress = load_progress(tmp_path)
    progress["01"].checks = 1
    progress.save()
    before = (tmp_path / FILE_NAME).read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    progress["01"].checks = 2
    with pytest.raises(InputError, match="No space left on device"):
        progress.save()
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert json.loads(before) == {"01": {"state": "", "checks": 1, "hints": 0, "solution_asked": 0}}

"""Files that appear wholly or not at all, names that cost nothing, and locks that end with their process."""

import contextlib
import errno
import os
import signal
import subprocess
import sys

import pytest

from minifocal import files
from minifocal.errors import InputError
from minifocal.files import atomic_folder, atomic_link, atomic_path, only_one, remove_partials, write_bytes


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_folder_after(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(files, "_sync", lambda path: seen.append((path.name, (tmp_path / "a").exists())))
    write_bytes(tmp_path / "a", b"content")
    assert seen == [(f"a.part{os.getpid()}", False), (tmp_path.name, True)]


def test_what_could_not_be_brought_to_the_disk_is_not_given_the_name(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    write_bytes(tmp_path / "a", b"before")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError, match=r"cannot write .*a: .*quota.*; make room there, or choose another folder"):
        write_bytes(tmp_path / "a", b"after")
    assert (tmp_path / "a").read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a"]


def test_a_leftover_of_a_dead_process_of_the_same_number_is_never_written_through(tmp_path):
    """In containers numbers come again at once; the leftover may be another name of a checkpoint."""
    (tmp_path / "good").write_bytes(b"good")
    os.link(tmp_path / "good", tmp_path / f"a.part{os.getpid()}")
    write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "good").read_bytes() == b"good"
    os.link(tmp_path / "good", tmp_path / f"b.part{os.getpid()}")
    atomic_link(tmp_path / "a", tmp_path / "b")
    assert [(tmp_path / name).read_bytes() for name in ("good", "a", "b")] == [b"good", b"new", b"new"]


def test_a_leftover_folder_of_a_dead_process_of_the_same_number_is_not_in_the_way(tmp_path):
    leftover = tmp_path / f"a.part{os.getpid()}"
    leftover.mkdir()
    (leftover / "old").write_bytes(b"")
    with atomic_folder(tmp_path / "a") as partial:
        write_bytes(partial / "new", b"")
    assert os.listdir(tmp_path) == ["a"]
    assert os.listdir(tmp_path / "a") == ["new"]


def test_another_name_costs_no_second_file_and_may_be_given_twice(tmp_path):
    (tmp_path / "last").write_bytes(b"1")
    for _ in range(2):
        atomic_link(tmp_path / "last", tmp_path / "previous")
    assert (tmp_path / "last").samefile(tmp_path / "previous")
    write_bytes(tmp_path / "last", b"2")
    assert (tmp_path / "previous").read_bytes() == b"1"
    assert sorted(os.listdir(tmp_path)) == ["last", "previous"]


def test_without_hard_links_a_file_is_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    (tmp_path / "last").write_bytes(b"1")
    monkeypatch.setattr(os, "link", refuse)
    atomic_link(tmp_path / "last", tmp_path / "previous")
    assert (tmp_path / "previous").read_bytes() == b"1"
    assert not (tmp_path / "last").samefile(tmp_path / "previous")


def test_only_leftovers_of_the_file_are_removed(tmp_path):
    kept = ["a", "a.part", "a.part1.txt", "a.partner", "b.part7", "xa.part7"]
    for name in [*kept, "a.part7", "a.part12345"]:
        (tmp_path / name).write_bytes(b"")
    remove_partials(tmp_path / "a")
    remove_partials(tmp_path / "?")
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_a_lock_names_who_holds_it_and_ends_with_the_block(tmp_path):
    with only_one(tmp_path / "run.lock", "the run") as held:
        assert held
        with (
            pytest.raises(InputError, match=rf"the run is in use by process {os.getpid()} on \S+; wait for it"),
            only_one(tmp_path / "run.lock", "the run"),
        ):
            pytest.fail("two hold it")
    with only_one(tmp_path / "run.lock", "the run") as held:
        assert held


HOLDER = """
import sys
from pathlib import Path
from minifocal.files import only_one
with only_one(Path(sys.argv[1]), "the run"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path):
    lock = tmp_path / "run.lock"
    command = [sys.executable, "-c", HOLDER, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"in use by process {holder.pid} on "), only_one(lock, "the run"):
            pytest.fail("two hold it")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with only_one(lock, "the run") as held:
            assert held


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_lock_that_is_a_link_is_refused_and_what_it_leads_to_stands(link, tmp_path):
    """A run's folder may come from anybody."""
    (tmp_path / "mine").write_bytes(b"kept")
    link(tmp_path / "mine", tmp_path / "run.lock")
    with pytest.raises(InputError, match=r"run\.lock is a link: .*; delete it"), only_one(tmp_path / "run.lock", "it"):
        pytest.fail("held")
    assert (tmp_path / "mine").read_bytes() == b"kept"


def test_a_lock_that_leads_nowhere_makes_nothing(tmp_path, monkeypatch):
    os.symlink(tmp_path / "nothing", tmp_path / "run.lock")
    kind = type(tmp_path)
    for look in (kind.is_symlink, lambda path: False):  # and where it becomes a link after the look
        monkeypatch.setattr(kind, "is_symlink", look)
        with pytest.raises(InputError, match=r"run\.lock"), only_one(tmp_path / "run.lock", "it"):
            pytest.fail("held")
    assert os.listdir(tmp_path) == ["run.lock"]


def test_folders_that_are_made_are_on_the_disk_under_their_names(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "_sync_folder", synced.append)
    write_bytes(tmp_path / "a" / "b" / "c.json", b"{}")
    assert set(synced) == {tmp_path, tmp_path / "a", tmp_path / "a" / "b"}
    synced.clear()
    with atomic_folder(tmp_path / "a") as partial:
        (partial / "d").write_bytes(b"")
    assert synced == [tmp_path / "a"]


def test_where_there_are_no_locks_nobody_is_refused(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patch:
        patch.setattr(files.fcntl, "flock", refuse)
        with only_one(tmp_path / "run.lock", "the run") as held:
            assert not held
    monkeypatch.setattr(files, "fcntl", None)
    with only_one(tmp_path / "run.lock", "the run") as held:
        assert not held


def test_a_folder_that_cannot_be_locked_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*run\.lock"), only_one(tmp_path / "file" / "run.lock", "it"):
        pytest.fail("held")


def test_whatever_goes_wrong_leaves_nothing(tmp_path):
    with contextlib.suppress(KeyError), atomic_path(tmp_path / "a") as partial:
        partial.write_bytes(b"half")
        raise KeyError
    assert os.listdir(tmp_path) == []

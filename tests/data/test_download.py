import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from minifocal.data import download
from minifocal.data.download import PUBLIC, PublicFile, cache_folder, fetch
from minifocal.errors import InputError


def publish(folder, name, data, md5=None, members=()):
    """Put a file where a file:// URL finds it."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return PublicFile((folder / name).as_uri(), md5 or hashlib.md5(data).hexdigest(), members)


def tar_gz(members, kind=None):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            if kind is not None:
                entry.type, entry.linkname, entry.size = kind, "/etc/passwd", 0
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def server(tmp_path):
    return tmp_path / "server"


@pytest.fixture
def target(tmp_path):
    return tmp_path / "target"


def test_files_are_fetched_with_progress(server, target):
    data = bytes(range(256)) * 2500  # more than two parts
    public = {"name": (publish(server, "one", data), publish(server, "two", b"2"))}
    calls = []
    assert fetch("name", target, lambda *call: calls.append(call), public) == target
    assert files_in(target) == ["one", "two"]
    assert (target / "one").read_bytes() == data
    assert calls == [
        ("one", 262144, 640000),
        ("one", 524288, 640000),
        ("one", 640000, 640000),
        ("two", 1, 1),
    ]


def test_what_is_there_is_not_fetched_again_and_what_is_damaged_is(server, target):
    public = {"name": (publish(server, "one", b"11"), publish(server, "two", b"22"))}
    fetch("name", target, public=public)
    (target / "two").write_bytes(b"xx")
    calls = []
    fetch("name", target, lambda *call: calls.append(call[0]), public)
    assert calls == ["two"]
    assert (target / "two").read_bytes() == b"22"


def test_a_wrong_checksum_leaves_nothing_behind(server, target):
    public = {"name": (publish(server, "one", b"11", md5="0" * 32),)}
    with pytest.raises(InputError, match=r"expected MD5 0{32}, got [0-9a-f]{32} for 2 bytes; nothing was kept"):
        fetch("name", target, public=public)
    assert files_in(target) == []


def test_a_wrong_checksum_does_not_touch_the_file_that_was_there(server, target):
    target.mkdir()
    (target / "one").write_bytes(b"old")
    with pytest.raises(InputError, match="expected MD5"):
        fetch("name", target, public={"name": (publish(server, "one", b"11", md5="0" * 32),)})
    assert (target / "one").read_bytes() == b"old"


def test_an_interrupted_download_leaves_nothing_behind(server, target):
    def interrupt(*call):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("name", target, interrupt, {"name": (publish(server, "one", b"11"),)})
    assert files_in(target) == []


def test_a_file_too_large_is_refused(server, target, monkeypatch):
    monkeypatch.setattr(download, "MAX_DOWNLOAD_BYTES", 10)
    with pytest.raises(InputError, match=r"has more than 10 bytes; fetch file:.* by hand and put it at .*one"):
        fetch("name", target, public={"name": (publish(server, "one", bytes(11)),)})
    assert files_in(target) == []


def test_no_network_is_said_plainly(target):
    file = PublicFile("http://127.0.0.1:9/one", "0" * 32)  # nobody listens on the discard port
    with pytest.raises(InputError) as caught:
        fetch("name", target, public={"name": (file,)})
    message = str(caught.value)
    assert message.startswith("no network, or the server did not answer (")
    assert message.endswith(f"fetch http://127.0.0.1:9/one by hand and put it at {target / 'one'}")
    assert "\n" not in message
    assert files_in(target) == []


def test_what_the_server_answers_is_said(target):
    class Missing(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Missing) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        file = PublicFile(f"http://127.0.0.1:{server.server_port}/one", "0" * 32)
        with pytest.raises(InputError, match=r"the server answered 404; try later, or fetch http:.* by hand"):
            fetch("name", target, public={"name": (file,)})
        thread.join()


def test_an_archive_is_unpacked_without_what_nobody_asked_for(server, target):
    data = tar_gz({"folder/train": b"abc", "folder/readme.html": b"hello", "folder/test": b"de"})
    file = publish(server, "data.tar.gz", data, members=("folder/train", "folder/test"))
    fetch("name", target, public={"name": (file,)})
    assert files_in(target) == ["data.tar.gz", "folder/test", "folder/train"]
    assert (target / "folder" / "train").read_bytes() == b"abc"

    (target / "folder" / "test").unlink()
    calls = []
    fetch("name", target, lambda *call: calls.append(call), {"name": (file,)})
    assert (target / "folder" / "test").read_bytes() == b"de"
    assert calls == []


@pytest.mark.parametrize("name", ["../evil", "/evil", "folder/../../evil"])
def test_an_archive_with_a_name_outside_is_refused(name, server, target):
    file = publish(server, "data.tar.gz", tar_gz({name: b"evil", "folder/train": b"abc"}), members=("folder/train",))
    with pytest.raises(InputError, match=f"refused an archive with the name '{name}'; delete it"):
        fetch("name", target, public={"name": (file,)})
    assert files_in(target.parent) == ["server/data.tar.gz", "target/data.tar.gz"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_a_member_that_is_no_plain_file_is_refused(kind, server, target):
    file = publish(server, "data.tar.gz", tar_gz({"folder/train": b""}, kind), members=("folder/train",))
    with pytest.raises(InputError, match="'folder/train' is no plain file of a sensible size"):
        fetch("name", target, public={"name": (file,)})
    assert files_in(target) == ["data.tar.gz"]


def test_a_member_too_large_is_refused(server, target, monkeypatch):
    file = publish(server, "data.tar.gz", tar_gz({"folder/train": bytes(5000)}), members=("folder/train",))
    monkeypatch.setattr(download, "MAX_DOWNLOAD_BYTES", 4999)
    with pytest.raises(InputError, match="'folder/train' is no plain file of a sensible size"):
        fetch("name", target, public={"name": (file,)})


GOOD = tar_gz({"folder/train": b"abc" * 500})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no archive", "the archive is damaged"),
        (GOOD[: len(GOOD) // 2], "the archive is damaged"),
        (tar_gz({"folder/test": b""}), "the archive has no folder/train; delete it and fetch again"),
    ],
    ids=["foreign", "truncated", "incomplete"],
)
def test_a_damaged_archive_is_refused(data, message, server, target):
    file = publish(server, "data.tar.gz", data, members=("folder/train",))
    with pytest.raises(InputError, match=message):
        fetch("name", target, public={"name": (file,)})
    assert files_in(target) == ["data.tar.gz"]


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"cannot read and write in .*file: .*; choose another folder"):
        fetch("name", tmp_path / "file", public={"name": (publish(server, "one", b"1"),)})


def test_another_name_is_refused():
    with pytest.raises(InputError, match="expected one of mnist, fashion-mnist, cifar10, cifar100 to fetch, got 'x'"):
        fetch("x")


def test_the_cache_folder_follows_the_environment(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIFOCAL_DATA", str(tmp_path / "chosen"))
    assert cache_folder() == tmp_path / "chosen"
    assert fetch("name", public={"name": (publish(server, "one", b"1"),)}) == tmp_path / "chosen" / "name"
    assert files_in(tmp_path / "chosen") == ["name/one"]
    monkeypatch.delenv("MINIFOCAL_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "minifocal"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "minifocal"


def test_the_public_table_is_complete_and_encrypted():
    files = [file for listed in PUBLIC.values() for file in listed]
    assert all(file.url.startswith("https://") for file in files)
    assert all(len(file.md5) == 32 and set(file.md5) <= set("0123456789abcdef") for file in files)
    assert len({file.md5 for file in files}) == len(files) == 10


def test_without_a_home_folder_one_has_to_be_named(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("MINIFOCAL_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(InputError, match="there is no home folder to keep data in; set MINIFOCAL_DATA to a folder"):
        cache_folder()
    monkeypatch.setenv("MINIFOCAL_DATA", "here")
    assert cache_folder() == Path("here")


def test_what_an_archive_unpacks_to_is_bounded_however_it_is_read():
    for size in (-1, 11, 1000):
        with pytest.raises(InputError, match="unpacks to more than"):
            download._Bounded(io.BytesIO(bytes(11)), limit=10).read(size)
    assert download._Bounded(io.BytesIO(bytes(10)), limit=10).read() == bytes(10)

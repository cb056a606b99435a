"""Downloads from a server that lies, breaks off or sends on: over TLS, on loopback.

The certificates are the tests' own (fixtures/loopback): for 127.0.0.1, signed by themselves, their key beside them.
"""

import hashlib
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minifocal.cli import main
from minifocal.data import download
from minifocal.data.download import PublicFile, fetch
from minifocal.errors import InputError

CERTIFICATES = Path(__file__).parents[1] / "fixtures" / "loopback"
DATA = bytes(range(256)) * 5
MD5 = hashlib.md5(DATA).hexdigest()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1280\r\n\r\n"


class Lying(ThreadingHTTPServer):
    """A server that answers with bytes as they stand, and counts who has asked."""

    daemon_threads = True

    def __init__(self, answers, certificate=None):
        super().__init__(("127.0.0.1", 0), LyingHandler)
        self.answers = answers
        self.asked = []
        self.scheme = "http" if certificate is None else "https"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATES / certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.shutdown()
        self.thread.join()
        self.server_close()

    def url(self, path, host="127.0.0.1"):
        return f"{self.scheme}://{host}:{self.server_port}/{path}"

    def file(self, path, md5=MD5, **options):
        return {"name": (PublicFile(self.url(path, **options), md5),)}

    def handle_error(self, request, client_address):
        """Who does not trust a server breaks off."""


class LyingHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        self.wfile.write(self.server.answers[self.path])

    def log_message(self, *arguments):
        pass


def redirect(url):
    return f"HTTP/1.1 302 Found\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n".encode()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "target"


@pytest.fixture
def trusted(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / "server.pem"))


def test_a_server_that_nobody_vouches_for_is_refused(target):
    with Lying({"/one": HEAD + DATA}, "server.pem") as server:
        with pytest.raises(InputError, match=r"does not prove who it is .*self.signed.*; nothing was fetched$"):
            fetch("name", target, public=server.file("one"))
        assert server.asked == []
    assert list(target.iterdir()) == []


def test_a_server_that_is_trusted_by_name_is_asked(target, trusted):
    with Lying({"/one": HEAD + DATA}, "server.pem") as server:
        fetch("name", target, public=server.file("one"))
    assert (target / "one").read_bytes() == DATA


def test_a_certificate_of_another_name_is_refused(target, trusted):
    with Lying({"/one": HEAD + DATA}, "server.pem") as server:
        with pytest.raises(InputError, match=r"does not prove who it is .*[Hh]ostname mismatch.*'localhost'"):
            fetch("name", target, public=server.file("one", host="localhost"))
        assert server.asked == []
    assert list(target.iterdir()) == []


def test_a_certificate_that_has_run_out_is_refused(target, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / "expired_server.pem"))
    with Lying({"/one": HEAD + DATA}, "expired_server.pem") as server:
        with pytest.raises(InputError, match=r"does not prove who it is .*expired"):
            fetch("name", target, public=server.file("one"))
        assert server.asked == []
    assert list(target.iterdir()) == []


def test_what_is_asked_for_encrypted_is_never_sent_on_to_anything_else(target, trusted):
    with Lying({"/one": HEAD + DATA}) as plain, Lying({}, "server.pem") as server:
        for url in (plain.url("one"), "ftp://127.0.0.1/one", plain.url("one").removeprefix("http:")):
            server.answers["/one"] = redirect(url)
            asked = len(plain.asked)
            with pytest.raises(InputError) as caught:
                fetch("name", target, public=server.file("one"))
            if not url.startswith("//"):
                assert str(caught.value) == (
                    f"{server.url('one')} sends on to {url}, which is not encrypted: refused; try later"
                )
            assert len(plain.asked) == asked == 0
        for url in ("https://[", f"https://{'a' * 64}.invalid/"):  # no address at all
            server.answers["/one"] = redirect(url)
            with pytest.raises(InputError, match=r"no network, or the server did not answer \(.*\); fetch https"):
                fetch("name", target, public=server.file("one"))
        for url in ((target.parent / "secret").as_uri(), "data:,x", "javascript:1", "FILE:///etc/passwd"):
            (target.parent / "secret").write_bytes(DATA)
            server.answers["/one"] = redirect(url)
            with pytest.raises(InputError, match=r"the server answered 302; try later"):
                fetch("name", target, public=server.file("one"))
    assert list(target.iterdir()) == []


def test_a_plain_server_may_send_on_to_an_encrypted_one_and_that_one_must_be_trusted(target, monkeypatch):
    with Lying({"/one": HEAD + DATA}, "server.pem") as server, Lying({"/one": redirect(server.url("one"))}) as plain:
        with pytest.raises(InputError, match=r"does not prove who it is"):
            fetch("name", target, public=plain.file("one"))
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / "server.pem"))
        fetch("name", target, public=plain.file("one"))
    assert (target / "one").read_bytes() == DATA


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n500\r\n"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (HEAD + DATA[:700], f"expected MD5 {MD5}, got [0-9a-f]{{32}} for 700 bytes; nothing was kept, try again"),
        (HEAD, "for 0 bytes; nothing was kept"),
        (HEAD + b"x" + DATA[1:], "for 1280 bytes; nothing was kept"),
        (CHUNKED + DATA[:700], "no network, or the server did not answer .*; fetch .* by hand"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "for 0 bytes; nothing was kept"),
        (b"", "no network, or the server did not answer"),
        (b"HTTP/1.1 2\x1b[31m0 OK\r\n\r\n", "no network, or the server did not answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200, "no network, or the server did not answer"),
        (b"x" * 70_000, "no network, or the server did not answer"),
    ],
    ids=["cut", "empty", "changed", "cut in parts", "no head", "silent", "escapes", "many headers", "long line"],
)
def test_a_connection_that_is_cut_or_lies_leaves_what_was_there(answer, message, target, trusted):
    target.mkdir()
    (target / "one").write_bytes(b"old")
    with Lying({"/one": answer}, "server.pem") as server, pytest.raises(InputError, match=message) as caught:
        fetch("name", target, public=server.file("one"))
    assert str(caught.value).isprintable()
    assert [path.name for path in target.iterdir()] == ["one"]
    assert (target / "one").read_bytes() == b"old"


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "²", "1e3", ""])
def test_a_length_that_is_none_is_passed_over(length, target, trusted):
    calls = []
    answer = f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode("latin-1") + DATA
    with Lying({"/one": answer}, "server.pem") as server:
        fetch("name", target, lambda *call: calls.append(call), server.file("one"))
    assert calls == [("one", 1280, None)]
    assert (target / "one").read_bytes() == DATA


def test_a_server_that_sends_too_much_is_stopped_at_the_bound(target, trusted, monkeypatch):
    monkeypatch.setattr(download, "MAX_DOWNLOAD_BYTES", 1000)
    answer = b"HTTP/1.1 200 OK\r\n\r\n" + DATA
    with Lying({"/one": answer}, "server.pem") as server, pytest.raises(InputError, match="has more than 1000 bytes"):
        fetch("name", target, public=server.file("one"))
    assert list(target.iterdir()) == []


def test_the_command_says_it_in_one_line(target, monkeypatch, capsys):
    with Lying({"/one": HEAD + DATA}, "server.pem") as server:
        monkeypatch.setattr(
            download.fetch, "__defaults__", (None, None, {"mnist": (PublicFile(server.url("one"), MD5),)})
        )
        assert main(["data", "fetch", "mnist", "--folder", str(target)]) == 2
    error = capsys.readouterr().err
    assert "does not prove who it is" in error
    assert error.count("\n") == 1

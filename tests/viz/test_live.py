"""The live view: a document that many may follow, a server for this machine only, and a run that does not notice."""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from live_runs import NAMES, SCRIPT, data, make_trainer, network

from minifocal.arrays import as_numpy
from minifocal.cli import main
from minifocal.cli.live import live_view
from minifocal.errors import InputError
from minifocal.training.listener import Listener, Listeners
from minifocal.training.trainer import TrainingError
from minifocal.viz import live, live_server
from minifocal.viz.live import Curve, LiveView, choose_images, rgb_pixels
from minifocal.viz.live_server import Document, LiveServer
from minifocal.viz.maps import block_maps

QUICK = ["--epochs", "2", "--hidden-size", "4", "--layers", "1", "--warmup-steps", "2", "--seed", "3"]


def parse(event):
    """Take an event apart: its id, its kind, its values."""
    fields = dict(line.split(": ", 1) for line in event.decode().strip().splitlines())
    return fields.get("id"), fields["event"], json.loads(fields["data"])


def follow(document):
    """The values as a reader has them who has just come, or come late."""
    with closing(document.read()) as events:
        _, kind, values = parse(next(events))
    assert kind == "document"
    return values


# The document


def test_a_reader_gets_all_and_then_each_change():
    document = Document(names=["a"], number=1)
    document.set(number=2)
    with closing(document.read()) as events:
        assert parse(next(events))[1:] == ("document", {"names": ["a"], "number": 2})
        document.append(names=["b", "c"])
        document.set(number=3)
        assert parse(next(events))[1:] == ("append", {"names": ["b", "c"]})
        assert parse(next(events))[1:] == ("set", {"number": 3})
    assert follow(document) == {"names": ["a", "b", "c"], "number": 3}


def test_a_reader_that_comes_back_gets_what_it_missed():
    document, other = Document(number=1), Document(number=1)
    with closing(document.read()) as events:
        last_id = parse(next(events))[0]
    document.set(number=2)
    document.set(number=3)
    with closing(document.read(last_id)) as events:
        assert [parse(next(events))[2] for _ in range(2)] == [{"number": 2}, {"number": 3}]
    other.set(number=5)
    for foreign in (last_id, "", "x", "-", f"{last_id}9", f"{last_id}-1", last_id.replace("-", "-²"), "9" * 10_000):
        with closing(other.read(foreign)) as events:
            assert parse(next(events))[1:] == ("document", {"number": 5}), foreign


def test_a_reader_that_lags_too_far_gets_all_again(monkeypatch):
    monkeypatch.setattr(live_server, "RECENT_BYTES", 300)
    document = Document(number=0)
    with closing(document.read()) as lagging, closing(document.read()) as prompt:
        next(lagging), next(prompt)
        for number in range(1, 50):
            document.set(number=number)
            assert parse(next(prompt))[1:] == ("set", {"number": number})
        assert parse(next(lagging))[1:] == ("document", {"number": 49})
        assert document._recent_bytes <= 300


def test_a_change_larger_than_all_that_is_kept_still_arrives(monkeypatch):
    monkeypatch.setattr(live_server, "RECENT_BYTES", 300)
    document = Document(text="")
    with closing(document.read()) as events:
        next(events)
        document.set(text="x" * 1000)
        assert parse(next(events))[1:] == ("document", {"text": "x" * 1000})


def test_readers_are_told_when_it_is_over_and_waited_for_and_late_ones_told_too(monkeypatch):
    monkeypatch.setattr(live_server, "FAREWELL_SECONDS", 60.0)
    document, order = Document(number=1), []

    def close():
        document.close()
        order.append("closed")

    with closing(document.read()) as events:
        next(events)
        closer = threading.Thread(target=close)
        closer.start()
        assert parse(next(events))[1] == "over"
        order.append("told")
        assert next(events, None) is None
    closer.join()
    assert order == ["told", "closed"]
    late = list(document.read())
    assert [parse(event)[1] for event in late] == ["document", "over"]


def test_an_idle_reader_is_sent_a_sign_of_life(monkeypatch):
    monkeypatch.setattr(live_server, "ALIVE_SECONDS", 0.0)
    with closing(Document().read()) as events:
        next(events)
        assert next(events).startswith(b":")  # a comment, which browsers pass over


def test_no_number_that_json_cannot_say_gets_into_the_document():
    with pytest.raises(ValueError, match="JSON"):
        Document().set(number=float("nan"))


# The server


def ask(server, request, host=None):
    """Send a request as it stands but for {page}, the page's path; give status, headers and content."""
    request = request.replace("{page}", server.prefix)
    host = f"Host: 127.0.0.1:{server.server_port}\r\n" if host is None else host
    with socket.create_connection(server.server_address, timeout=20) as connection:
        connection.sendall(f"{request}\r\n{host}\r\n".encode("latin-1"))
        with connection.makefile("rb") as answer:
            head, _, content = answer.read().partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    return int(lines[0].split()[1]), dict(line.split(": ", 1) for line in lines[1:]), content


@pytest.fixture
def server():
    with LiveServer(Document(number=1)) as server:
        yield server


def test_it_listens_on_loopback_only(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_port}{server.prefix}"
    others = ["127.0.0.2"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, suppress(OSError):
        asking.connect(("198.51.100.1", 9))  # sends nothing, but shows by which address this machine would
        others.append(asking.getsockname()[0])
    for address in others:
        with pytest.raises(OSError, match=r"refused|unreachable|assign"):
            socket.create_connection((address, server.server_port), timeout=20).close()


def test_every_file_comes_with_its_kind_and_a_strict_policy(server):
    for path, kind in (("", "text/html"), ("live.css", "text/css"), ("live.js?a=1", "text/javascript")):
        status, headers, content = ask(server, f"GET {{page}}{path} HTTP/1.1")
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"  # which would tell the token
        assert headers["Cache-Control"] == "no-store"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert not [name for name in headers if name.startswith("Access-Control")]
        assert int(headers["Content-Length"]) == len(content) > 100


HOSTS = (
    "",
    "Host: evil.example\r\n",
    "Host: 127.0.0.1\r\n",
    "Host: 127.0.0.1:1\r\n",
    "Host: localhost\r\n",
    "Host: 127.0.0.1.:{port}\r\n",
    "Host: localhost.:{port}\r\n",
    "Host: evil.example:{port}\r\n",
    "Host: 2130706433:{port}\r\n",
    "Host: 127.0.0.1:0{port}\r\n",
    "Host: 127.0.0.1:{port} \r\nX-Forwarded-Host: 127.0.0.1:{port}\r\nhost: 127.0.0.1:{port}\r\n",
    "Host: 127.0.0.1.evil.example:{port}\r\n",
    "Host: [::1]:{port}\r\n",
    "Host: 0.0.0.0:{port}\r\n",
    "Host: 127.0.0.1:{port}@evil.example\r\n",
    "Host: 127.0.0.1:{port}\r\nHost: evil.example\r\n",
)
# Within the page, and where the page is not.
PATHS = (
    *("{page}live.html", "{page}../live.py", "{page}..%2flive.py", "{page}%2e%2e/live.py", "{page}/etc/passwd"),
    *("{page}pages/live.js", "{page}events/", "{page}live.js/", "{page}./live.js", "{page}LIVE.JS", "{page}live.js%00"),
    *("{page}live.js;a", "{page}#", "{page}\xff", "{page}..", "{page}../", "{page}.{page}", "{page}{page}"),
    *(
        "/",
        "/live.js",
        "/events",
        "/../live.py",
        "//etc/passwd",
        "/favicon.ico",
        "*",
        "/\xff",
        "x",
        "/..{page}",
        "/.{page}",
    ),
    *(
        "http://127.0.0.1{page}",
        "http://evil.example{page}",
        "http://127.0.0.1{page}live.js",
        "file:{page}",
        "/%2f{page}",
    ),
)


def test_every_file_is_part_of_the_package():
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert "viz/pages/*" in settings["tool"]["setuptools"]["package-data"]["minifocal"]
    names = {path.name for path in live_server.PAGES.iterdir()}
    assert {name for name, _ in live_server.FILES.values()} <= names


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("path", ["{page}", "{page}events", "/no"])
def test_another_name_than_its_own_is_refused(server, host, path):
    status, headers, content = ask(server, f"GET {path} HTTP/1.1", host.format(port=server.server_port))
    assert (status, content) == (403, b"403 Forbidden\n")
    assert "Content-Security-Policy" in headers


def test_localhost_is_its_own_name_too(server):
    assert ask(server, "GET {page} HTTP/1.1", f"Host: localhost:{server.server_port}\r\n")[0] == 200


def test_it_answers_only_to_who_knows_the_address(server):
    token = server.prefix.strip("/")
    assert len(token) == 22  # 128 bits, in base 64
    ends = (
        token[:-1],
        token[:-1] + ("A" if token[-1] != "A" else "B"),
        f"{token}A",
        token.swapcase(),
        "",
        token[1:],
    )
    for other in ends:
        for name in ("", "events", "live.js"):
            status, headers, content = ask(server, f"GET /{other}/{name} HTTP/1.1")
            assert (status, content) == (404, b"404 Not Found\n"), other
            assert token not in str(headers)
    assert ask(server, f"GET /{token} HTTP/1.1")[0] == ask(server, f"GET /?{token}/ HTTP/1.1")[0] == 404
    assert ask(server, f"GET /{token}/ HTTP/1.1")[0] == 200
    with LiveServer(Document()) as second:
        assert second.prefix != server.prefix


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_only_get_is_answered(server, method):
    status, headers, _ = ask(server, f"{method} {{page}}events HTTP/1.1")
    assert (status, headers["Allow"]) == (405, "GET")


@pytest.mark.parametrize("path", PATHS)
def test_any_other_path_is_not_there(server, path):
    assert ask(server, f"GET {path} HTTP/1.1")[0] == 404


@pytest.mark.parametrize(
    "request_text",
    [
        "",
        "GET",
        "GET /",
        "\x00\x01",
        "GET / HTTP/9.9",
        f"GET /{'x' * 70_000} HTTP/1.1",
        f"GET / HTTP/1.1\r\n{'x' * 70_000}: 1",
    ]
    + [
        "GET / HTTP/1.1\r\n" + "a: b\r\n" * 120,
        "GET {page}",
        "GET {page} HTTP/0.9",
        "GET {page} HTTP/1.7",
        "\x16\x03\x01",
        "PRI * HTTP/2.0",
    ],
)
def test_what_is_no_request_does_no_harm(server, request_text, capfd):
    host = f"Host: 127.0.0.1:{server.server_port}"
    request_text = f"{request_text.replace('{page}', server.prefix)}\r\n{host}"
    with socket.create_connection(server.server_address, timeout=20) as connection:
        connection.sendall(f"{request_text}\r\n\r\n".encode("latin-1"))
        # closed with some of it unread, it may be reset
        with connection.makefile("rb") as answer, suppress(ConnectionResetError):
            text = answer.read()
            assert re.fullmatch(rb"(HTTP/1.0 [45].*(\r\n.*)*\r\n\r\n)?([45]\d\d .*\n)?", text)
            assert b"HTTP/1" not in text or b"Content-Security-Policy" in text
    assert ask(server, "GET {page} HTTP/1.1")[0] == 200
    assert capfd.readouterr() == ("", "")  # the terminal belongs to the training


@pytest.fixture
def later(monkeypatch):
    """Let the server's clock go on by more than anybody may take to ask."""

    def later():
        now = time.monotonic() + live_server.ASKING_SECONDS + 1.0
        monkeypatch.setattr(live_server, "time", SimpleNamespace(monotonic=lambda: now))

    return later


def test_who_asks_slowly_is_given_up_and_others_are_answered(server, later):
    """However many bytes keep coming: what counts is the whole request."""

    def drip():
        for _ in range(5_000):
            slow.sendall(b"a")
            assert ask(server, "GET {page} HTTP/1.1")[0] == 200

    with socket.create_connection(server.server_address, timeout=20) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\na")
        assert ask(server, "GET {page} HTTP/1.1")[0] == 200  # the slow one, which came before, is being heard
        later()
        with pytest.raises(OSError, match=r"reset|[Pp]ipe|aborted"):
            drip()


def test_who_has_asked_may_listen_for_as_long_as_it_likes(server, later):
    with (
        socket.create_connection(server.server_address, timeout=20) as silent,
        socket.create_connection(server.server_address, timeout=20) as connection,
    ):
        host = f"Host: localhost:{server.server_port}\r\n"
        connection.sendall(f"GET {server.prefix}events HTTP/1.1\r\n{host}\r\n".encode())
        with connection.makefile("rb") as answer:
            assert any(line.startswith(b"event: document") for line in iter(answer.readline, b""))
            later()
            assert silent.recv(1) == b""  # given up
            server.document.set(number=2)
            assert any(line == b'data: {"number":2}\n' for line in iter(answer.readline, b""))


def test_there_is_room_for_so_many_connections_and_no_more(server, monkeypatch):
    monkeypatch.setattr(live_server, "MAX_CONNECTIONS", 5)
    monkeypatch.setattr(live_server, "ASKING_SECONDS", 1e6)
    before = threading.active_count()
    crowd = [socket.create_connection(server.server_address, timeout=20) for _ in range(20)]
    try:
        for turned_away in crowd[5:]:
            with suppress(ConnectionResetError):
                assert turned_away.recv(1) == b""
        assert threading.active_count() <= before + 5
    finally:
        for connection in crowd:
            connection.close()
    status = 0
    while status != 200:  # as soon as their threads have heard that they are gone
        with suppress(OSError, IndexError):
            status = ask(server, "GET {page} HTTP/1.1")[0]


def test_a_port_that_is_taken_or_is_none_is_refused_in_one_line(server):
    with pytest.raises(InputError, match=f"cannot serve the live view on port {server.server_port}: .*another port"):
        LiveServer(Document(), server.server_port)
    for port in (-1, 65536, True, 80.5):
        with pytest.raises(InputError, match="port must be"):
            LiveServer(Document(), port)


def test_two_at_once_do_not_know_of_each_other(server):
    with LiveServer(Document(number=2)) as second:
        assert second.server_port != server.server_port
        for one, number in ((server, 1), (second, 2)):
            with socket.create_connection(one.server_address, timeout=20) as connection:
                connection.sendall(
                    f"GET {one.prefix}events HTTP/1.1\r\nHost: 127.0.0.1:{one.server_port}\r\n\r\n".encode()
                )
                with connection.makefile("rb") as answer:
                    assert any(
                        line == f'data: {{"number":{number}}}\n'.encode() for line in iter(answer.readline, b"\n\n")
                    )


def test_a_last_event_id_goes_on_from_there(server):
    server.document.set(number=2)
    threading.Timer(0, server.document.close).start()
    host = f"Host: 127.0.0.1:{server.server_port}\r\n"
    everything = ask(server, "GET {page}events HTTP/1.1")[2]
    assert everything.count(b"event: document") == 1
    last_id = everything.partition(b"id: ")[2].partition(b"\n")[0].decode()
    again = ask(server, "GET {page}events HTTP/1.1", f"{host}Last-Event-ID: {last_id}\r\n")[2]
    assert b"event: document" not in again
    assert again.endswith(b"event: over\ndata: {}\n\n")


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, TrainingError])
def test_it_stops_whatever_browsers_do(monkeypatch, error):
    """One that never asks, one that never reads and would fill every buffer, and one that reads to the end."""
    monkeypatch.setattr(live_server, "FAREWELL_SECONDS", 0.5)
    before = set(threading.enumerate())
    document = Document(text="")
    request = "GET {}events HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n\r\n"
    read = []

    def run():
        with LiveServer(document) as server:
            silent, deaf, good = (socket.create_connection(server.server_address, timeout=20) for _ in range(3))
            sockets.extend((silent, deaf, good))
            for connection in (deaf, good):
                connection.sendall(request.format(server.prefix, server.server_port).encode())
            reader = threading.Thread(target=lambda: read.append(good.makefile("rb", buffering=0).readall()))
            reader.start()
            readers.append(reader)
            for number in range(20):  # far more than the system keeps for one who does not read
                document.set(text=f"{number:02}" * 2**20)
            ports.append(server.server_port)
            if error is not None:
                raise error

    sockets, readers, ports = [], [], []
    try:
        if error is None:
            run()
        else:
            with pytest.raises(error):
                run()
        readers[0].join(20)
        assert read[0].endswith(b"event: over\ndata: {}\n\n")
        assert set(threading.enumerate()) <= before | set(readers)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", ports[0]), timeout=20)
    finally:
        for connection in sockets:
            connection.close()


# The view of a run


@pytest.fixture
def look_always(monkeypatch):
    """Look at the gates after every step."""
    monkeypatch.setattr(live, "GATE_SECONDS", 0.0)
    monkeypatch.setattr(live, "GATE_SHARE", float("inf"))
    monkeypatch.setattr(live, "TELL_SECONDS", 0.0)


def arrays(trainer):
    return [array for parameter in trainer.model.parameters() for array in (parameter.data, parameter.grad)]


@pytest.mark.parametrize("modulation", ["focal", "sigmoid_gate", "box_mean"])
def test_a_run_that_is_watched_ends_with_the_same_bits(modulation, look_always):
    view = LiveView()
    alone, watched = make_trainer(model=network(modulation)), make_trainer(view, model=network(modulation))
    looked = []
    tell, view.document.set = view.document.set, lambda **values: (looked.append("gates" in values), tell(**values))
    assert alone.fit()
    assert watched.fit()
    assert sum(looked) == 1 + watched.schedule.total_steps
    for ours, theirs in zip(arrays(alone), arrays(watched), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert alone.rng.bit_generator.state == watched.rng.bit_generator.state
    for ours, theirs in zip(alone.history, watched.history, strict=True):
        assert all(ours[name] == theirs[name] for name in ours if name not in ("seconds", "images_per_second"))


class Remember(Listener):
    def __init__(self):
        self.steps, self.messages = [], []

    def on_step(self, step, total, record, images):
        self.steps.append([step, record.loss, record.accuracy])

    def on_message(self, message):
        self.messages.append(message)


@pytest.mark.parametrize("pace", [0.0, float("inf")])
def test_the_document_has_every_step_and_epoch_of_the_run(pace, monkeypatch):
    monkeypatch.setattr(live, "TELL_SECONDS", pace)
    memory, view = Remember(), LiveView("runs/x")
    trainer = make_trainer(Listeners(memory, view), epochs=4, lr=1e-6)
    trainer.fit()
    view.end()
    seen = follow(view.document)
    assert [point[:3] for point in seen["points"]] == memory.steps
    assert [point[3] for point in seen["points"]] == [trainer.schedule(step) for step in range(4 * 4)]
    assert seen["now"] == dict(zip(("step", "loss", "accuracy", "lr"), seen["points"][-1], strict=True))
    assert seen["epochs"] == trainer.history
    assert seen["messages"] == memory.messages != []
    assert seen["run"]["title"] == "runs/x"
    assert (seen["run"]["total_steps"], seen["run"]["steps_per_epoch"], seen["stride"]) == (16, 4, 1)
    assert seen["status"] == {"kind": "finished", "text": "all epochs are done"}
    assert seen["gates"]["step"] == 16


def test_a_long_curve_is_thinned_and_its_readers_have_the_same(monkeypatch):
    monkeypatch.setattr(live, "POINTS", 8)
    curve = Curve()
    for step in range(1, 36):
        curve.add(step, float(step), 2.0 * step, 3.0 * step)
    # 8 steps become 4 points of 2, 16 become 4 of 4, 32 become 4 of 8; three steps wait for five more
    assert curve.stride == 8
    assert curve.points == [[8, 4.5, 9.0, 24.0], [16, 12.5, 25.0, 48.0], [24, 20.5, 41.0, 72.0], [32, 28.5, 57.0, 96.0]]
    for pace in (0.0, float("inf")):
        monkeypatch.setattr(live, "TELL_SECONDS", pace)
        view = LiveView()
        with closing(view.document.read()) as events:
            mine = parse(next(events))[2]
            make_trainer(view, epochs=5).fit()
            while mine["now"] is None or mine["now"]["step"] < 20:
                _, kind, values = parse(next(events))
                for name, value in values.items():
                    mine[name] = mine[name] + value if kind == "append" else value
        assert mine["points"] == view.curve.points == follow(view.document)["points"]
        assert [point[0] for point in mine["points"]] == [4, 8, 12, 16, 20]


def decoded(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


@pytest.mark.parametrize("modulation", ["focal", "sigmoid_gate", "box_mean"])
def test_gates_are_those_of_the_maps_with_one_scale_a_row(modulation):
    view = LiveView()
    trainer = make_trainer(view, model=network(modulation, dtype="float64"), epochs=1)
    trainer.fit()
    view.end()
    gates = follow(view.document)["gates"]
    chosen = choose_images(trainer.validation)
    pixels = trainer.standardize(trainer.validation.images[chosen], 255, "float64")
    logits, cache = trainer.model.forward(pixels)
    assert [guess["class"] for guess in gates["guesses"]] == [NAMES[guess] for guess in logits.argmax(axis=1)]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose([guess["probability"] for guess in gates["guesses"]], shares.max(axis=1), rtol=1e-12)
    for image in range(len(chosen)):
        for block, maps in zip(gates["blocks"], block_maps(trainer.model, cache, image), strict=True):
            assert block["name"] == maps.name
            for row, tokens in zip(block["rows"], maps.maps, strict=True):
                assert row["name"] == tokens.name
                assert (block["height"], block["width"]) == tokens.values.shape
                values = decoded(row["values"][image], "<f4").reshape(tokens.values.shape)
                np.testing.assert_array_equal(values, tokens.values.astype(np.float32))
                signed = tokens.kind == "gate" and modulation == "focal"
                assert (row["colours"], row["low"]) == (("RdBu_r", -row["high"]) if signed else ("viridis", 0.0))
                assert abs(values).max() <= row["high"]
    for block in gates["blocks"]:
        for row in block["rows"]:
            largest = max(float(abs(decoded(text, "<f4")).max()) for text in row["values"])
            assert row["high"] == (1.0 if row["name"] == "gate, mean of channels" else largest)


def test_weights_that_are_no_numbers_do_not_stop_the_view():
    view = LiveView()
    trainer = make_trainer(view)
    trainer.model.head.weight.data[:] = np.nan
    trainer.model.layers[0].blocks[0].modulation.f.weight.data[0, 0] = np.inf
    view.on_start(trainer)
    gates = follow(view.document)["gates"]
    assert [guess["probability"] for guess in gates["guesses"]] == [None] * live.IMAGES
    assert all(np.isfinite(row["high"]) for block in gates["blocks"] for row in block["rows"])


def test_a_resumed_run_shows_its_earlier_epochs(tmp_path):
    class Stop(Listener):
        def on_step(self, step, total, record, images):
            if step == 6:
                os.kill(os.getpid(), signal.SIGINT)

    first = LiveView()
    stopped = make_trainer(Listeners(first, Stop()), folder=tmp_path)
    assert not stopped.fit()
    first.end()
    assert follow(first.document)["status"]["kind"] == "stopped"
    assert follow(first.document)["gates"]["step"] == 6
    view = LiveView()
    resumed = make_trainer(view, folder=tmp_path)
    resumed.resume()
    view.on_start(resumed)
    begun = follow(view.document)
    assert begun["epochs"] == stopped.history != []
    assert (begun["run"]["first_step"], begun["gates"]["step"], begun["now"]) == (6, 6, None)
    assert begun["gates"] == follow(first.document)["gates"]
    resumed.fit()
    seen = follow(view.document)
    assert [point[0] for point in seen["points"]] == list(range(7, 13))
    assert seen["epochs"] == resumed.history


def test_a_run_that_diverged_says_so():
    view = LiveView()
    with pytest.raises(TrainingError) as caught:
        make_trainer(view, lr=1e30, clip_norm=0.0).fit()
    view.fail(caught.value)
    seen = follow(view.document)
    assert seen["status"] == {"kind": "failed", "text": str(caught.value)}
    view.fail(KeyboardInterrupt())
    assert follow(view.document)["status"]["kind"] == "stopped"
    view.fail(ValueError())
    assert follow(view.document)["status"]["text"] == "ValueError"


def test_images_are_of_classes_far_apart_and_then_second_ones():
    assert choose_images(data(11, seed=1))[:3].tolist() == [0, 1, 2]
    chosen = choose_images(data(11, seed=1))
    assert len(set(chosen.tolist())) == live.IMAGES
    many = data(5, seed=0)
    object.__setattr__(many, "labels", np.arange(20) % 10)
    object.__setattr__(many, "class_names", tuple(map(str, range(10))))
    object.__setattr__(many, "images", np.zeros((20, 1, 2, 2), np.uint8))
    assert choose_images(many).tolist() == [0, 2, 4, 5, 7, 9]
    assert choose_images(many.subset(np.array([3]))).tolist() == [0]


def test_pixels_are_grey_or_red_green_and_blue():
    image = np.arange(12, dtype=np.float32).reshape(3, 2, 2) / 11
    np.testing.assert_array_equal(rgb_pixels(image, 1.0)[1, 0], [46, 139, 232])
    np.testing.assert_array_equal(rgb_pixels(image[:1] * 99, 1.0)[1, 0], [255, 255, 255])
    np.testing.assert_array_equal(rgb_pixels(image[:2], 1.0)[0, 1], [70, 70, 70])  # the mean of 1/11 and 5/11


# The command


def weights(folder):
    from minifocal import load_checkpoint

    return load_checkpoint(folder / "last.safetensors").model


def test_the_command_serves_and_keeps_nothing_of_it_with_the_run(tmp_path, capsys):
    before = set(threading.enumerate())
    assert main(["train", "--out", str(tmp_path / SCRIPT.replace("/", "")), "--live", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "live view: http://127.0.0.1:" in out
    assert out.splitlines()[-1].startswith("test accuracy")
    assert main(["train", "--out", str(tmp_path / "plain"), *QUICK]) == 0
    assert "live view" not in capsys.readouterr().out
    assert set(threading.enumerate()) <= before
    watched, plain = (tmp_path / SCRIPT.replace("/", "")), tmp_path / "plain"
    assert (watched / "config.json").read_bytes() == (plain / "config.json").read_bytes()
    ours, theirs = weights(watched), weights(plain)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())


def test_a_taken_port_is_refused_before_there_is_a_folder(tmp_path, capsys, server):
    assert main(["train", "--out", str(tmp_path / "run"), "--live", str(server.server_port), *QUICK]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"minifocal train: cannot serve the live view on port {server.server_port}: ")
    assert error.count("\n") == 1
    assert main(["train", "--out", str(tmp_path / "run"), "--live", "70000", *QUICK]) == 2
    assert "port must be at most 65535" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_stopped_run_says_how_to_go_on_with_the_view(tmp_path, capsys, monkeypatch):
    out = ["train", "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr("minifocal.training.trainer.Trainer.fit", lambda self: self._save() or False)
        patch.setattr(LiveView, "end", lambda self: None)
        assert main([*out, "--live", *QUICK]) == 130
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"--resume --out {tmp_path / 'run'} --live")
    assert main([*out, "--resume", "--live"]) == 0
    assert "live view: " in capsys.readouterr().out


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TrainingError("the loss is nan")])
def test_whatever_ends_a_run_the_view_says_it_and_closes(error, tmp_path, capsys):
    class Break(Listener):
        def on_step(self, step, total, record, images):
            raise error

    def fit_in_view():
        with live_view(0) as following, following(trainer):
            trainer.fit()

    before = set(threading.enumerate())
    trainer = make_trainer(Break(), folder=tmp_path)
    with pytest.raises(type(error)):
        fit_in_view()
    view = trainer.listener.listeners[1]
    status = follow(view.document)["status"]
    assert status["kind"] == ("stopped" if isinstance(error, KeyboardInterrupt) else "failed")
    assert view.title == str(tmp_path)
    assert set(threading.enumerate()) <= before


def test_ctrl_c_stops_the_run_and_its_readers_hear_it(tmp_path):
    command = ["train", "--out", str(tmp_path / "run"), "--live", *QUICK, "--epochs", "10000"]
    with subprocess.Popen([sys.executable, "-m", "minifocal", *command], stdout=subprocess.PIPE, text=True) as process:
        url = next(line for line in process.stdout if line.startswith("live view: "))
        port, path = re.search(r":(\d+)(/\S+)", url).groups()
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(f"GET {path}events HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode())
            with connection.makefile("rb") as answer:
                while b'"epochs":[{"epoch":1,' not in answer.readline():
                    pass
                process.send_signal(signal.SIGINT)
                rest = answer.read()
        assert "go on with: " in process.stdout.read()
    assert process.returncode == 130
    assert b'"status":{"kind":"stopped","text":"stopped and saved after a step; it can be resumed"}' in rest
    assert rest.endswith(b"event: over\ndata: {}\n\n")


def test_a_run_on_a_device_is_watched_and_ends_with_the_same_bits(cuda_on_host, look_always):
    """There, steps are heard of late, many at once; the gates are those of the weights at that moment."""
    view = LiveView()
    alone = make_trainer(model=network(device="cuda"))
    watched = make_trainer(view, model=network(device="cuda"))
    alone.fit()
    watched.fit()
    view.end()
    for ours, theirs in zip(arrays(alone), arrays(watched), strict=True):
        np.testing.assert_array_equal(as_numpy(ours), as_numpy(theirs))
    seen = follow(view.document)
    assert [point[0] for point in seen["points"]] == list(range(1, 13))
    assert seen["gates"]["step"] == 12

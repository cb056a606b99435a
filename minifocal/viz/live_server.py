"""A document on loopback that browsers follow while it changes; nobody who writes it ever waits for them."""

import json
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR
from socketserver import TCPServer
from typing import Any, NamedTuple

from minifocal.errors import InputError, check_integer

ADDRESS = "127.0.0.1"
PAGES = Path(__file__).parent / "pages"
FILES = {
    "": ("live.html", "text/html; charset=utf-8"),
    "live.css": ("live.css", "text/css; charset=utf-8"),
    "live_feed.js": ("live_feed.js", "text/javascript; charset=utf-8"),
    "live_curves.js": ("live_curves.js", "text/javascript; charset=utf-8"),
    "live_gates.js": ("live_gates.js", "text/javascript; charset=utf-8"),
    "live.js": ("live.js", "text/javascript; charset=utf-8"),
    "live.svg": ("live.svg", "image/svg+xml"),
}
EVENTS = "events"
TOKEN_BYTES = 16
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
RECENT_BYTES = 2**23  # changes that are kept for readers who lag; whoever lags further gets the whole document again
ALIVE_SECONDS = 15.0  # between signs of life where nothing changes: a reader that has gone is noticed
STUCK_SECONDS = 30.0  # a connection that takes nothing for so long is given up
ASKING_SECONDS = 10.0  # a connection that has not asked for something by then is given up
MAX_CONNECTIONS = 64  # at a time; more are closed unheard
FAREWELL_SECONDS = 2.0  # at most, for readers to take what came last
POLL_SECONDS = 0.1  # between two looks at whether to stop


class _Change(NamedTuple):
    number: int
    text: bytes  # as it goes over the wire


class Document:
    """Values by name, which any number of readers follow, each at its own pace.

    A reader that comes gets all of it, then each change; one that lags too far gets all of it again. Readers take from
    one common list, so that however many there are, and however slow, writing costs the same.

    Args:
        values: what JSON can say, and nothing that changes later but by `set` and `append`.
    """

    def __init__(self, **values: Any) -> None:
        self._values = values
        self._name = secrets.token_hex(4)  # of this document: numbers of another's changes mean nothing here
        self._number = 0
        self._recent: deque[_Change] = deque()
        self._recent_bytes = 0
        self._readers = 0
        self._closed = False
        self._changed = threading.Condition()

    def set(self, **values: Any) -> None:
        """Replace values."""
        with self._changed:
            self._values.update(values)
            self._tell("set", values)

    def append(self, **items: list[Any]) -> None:
        """Add items at the end of values that are lists."""
        with self._changed:
            for name, more in items.items():
                self._values[name] = [*self._values[name], *more]
            self._tell("append", items)

    def close(self) -> None:
        """Say that nothing will change any more; wait a moment for readers to take what came last."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._readers, FAREWELL_SECONDS)

    def read(self, last_id: str | None = None) -> Generator[bytes, None, None]:
        """Give events as browsers take them: `document`, then `set` and `append`, and `over` in the end.

        Args:
            last_id: of the last event that this reader had, if any.
        """
        with self._changed:
            self._readers += 1
        try:
            yield from self._events(last_id)
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    def _events(self, last_id: str | None) -> Iterator[bytes]:
        had = self._number_of(last_id)
        while True:
            with self._changed:
                self._wait_for_news(had)
                number, closed = self._number, self._closed
                oldest = number - len(self._recent)  # what came after this change is kept
                values = None if had is not None and oldest <= had <= number else dict(self._values)
                changes = [change.text for change in self._recent if had is not None and change.number > had]
            if values is not None:
                yield self._event("document", number, values)
            elif changes:
                yield from changes
            elif not closed:
                yield b": nothing new\n\n"
            if closed:
                yield b"event: over\ndata: {}\n\n"
                return
            had = number

    def _wait_for_news(self, had: int | None) -> None:
        self._changed.wait_for(lambda: self._closed or had != self._number, ALIVE_SECONDS)

    def _number_of(self, event_id: str | None) -> int | None:
        name, _, number = (event_id or "").partition("-")
        is_number = number.isascii() and number.isdigit() and len(number) < 16
        return int(number) if name == self._name and is_number else None

    def _tell(self, kind: str, values: dict[str, Any]) -> None:
        self._number += 1
        change = _Change(self._number, self._event(kind, self._number, values))
        self._recent.append(change)
        self._recent_bytes += len(change.text)
        while self._recent_bytes > RECENT_BYTES:
            self._recent_bytes -= len(self._recent.popleft().text)
        self._changed.notify_all()

    def _event(self, kind: str, number: int, values: dict[str, Any]) -> bytes:
        content = json.dumps(values, allow_nan=False, separators=(",", ":"))  # in ASCII, and in one line
        return f"id: {self._name}-{number}\nevent: {kind}\ndata: {content}\n\n".encode("ascii")


class LiveServer(ThreadingHTTPServer):
    """Serves the page and its document on loopback, until the `with` block ends.

    It answers only to its own two names, so that no page of another site can read it by giving its name this address;
    and only to who knows the token that is part of the page's address, so that other users of this machine cannot.
    Nobody can change anything. Who asks slowly, or for many things at once, waits or is left out: the run never is.

    Args:
        document: what the page follows.
        port: to listen on; 0 takes one that is free.
    Raises:
        InputError: the port is no port, or the system does not give it.
    """

    allow_reuse_address = os.name == "posix"  # elsewhere that would share a port with another program
    allow_reuse_port = False
    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS  # the system keeps so many until they are accepted

    def __init__(self, document: Document, port: int = 0) -> None:
        check_integer("port", port, at_least=0, at_most=65535)
        self.document = document
        self.files = {path: ((PAGES / name).read_bytes(), kind) for path, (name, kind) in FILES.items()}
        self.prefix = f"/{secrets.token_urlsafe(TOKEN_BYTES)}/"  # of every path
        self._connections: dict[Any, threading.Thread] = {}
        self._unheard: dict[Any, float] = {}  # connections that have not asked yet, and until when they may
        self._serving = threading.Thread(target=self.serve_forever, args=(POLL_SECONDS,), name="live view", daemon=True)
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise InputError(
                f"cannot serve the live view on port {port}: {error.strerror or error}; name another port, or none"
            ) from error

    def __enter__(self) -> "LiveServer":
        self._serving.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.document.close()
        self.shutdown()
        self._serving.join()
        self.server_close()
        for connection, thread in list(self._connections.items()):
            with suppress(OSError):
                connection.shutdown(SHUT_RDWR)  # wakes a thread that waits for its browser
            thread.join(FAREWELL_SECONDS)

    def server_bind(self) -> None:
        """Take the port, and the names to answer to; the base class would ask the network for one."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = ADDRESS, self.server_address[1]
        self.hosts = {f"{name}:{self.server_port}" for name in (ADDRESS, "localhost")}
        if self.server_port == 80:
            self.hosts |= {ADDRESS, "localhost"}

    @property
    def url(self) -> str:
        """The address of the page. It is a secret: who has it may look."""
        return f"http://{ADDRESS}:{self.server_port}{self.prefix}"

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Say whether there is room for one more connection."""
        return len(self._connections) < MAX_CONNECTIONS

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, which is remembered until it is done."""
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self._connections[request] = thread
        self._unheard[request] = time.monotonic() + ASKING_SECONDS
        thread.start()

    def was_heard(self, request: Any) -> None:
        """Remember that a connection has asked."""
        self._unheard.pop(request, None)

    def service_actions(self) -> None:
        """Give up connections that did not ask in time, however many bytes they sent."""
        now = time.monotonic()
        for connection, until in list(self._unheard.items()):
            if now > until:
                with suppress(OSError):
                    connection.shutdown(SHUT_RDWR)  # wakes its thread, which closes it

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        super().shutdown_request(request)
        self._unheard.pop(request, None)
        self._connections.pop(request, None)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: LiveServer
    timeout = STUCK_SECONDS

    def handle(self) -> None:
        """Answer; a browser that goes away, or takes nothing for long, is no concern of ours."""
        with suppress(OSError):
            super().handle()

    def parse_request(self) -> bool:
        """Read the request, and refuse all but GET under our own name."""
        if not super().parse_request():
            return False
        self.server.was_heard(self.connection)
        if self.request_version not in ("HTTP/1.0", "HTTP/1.1"):  # what came before has no headers
            self._refuse(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
            return False
        if self.headers.get_all("Host") not in [[host] for host in self.server.hosts]:
            self._refuse(HTTPStatus.FORBIDDEN)
            return False
        if self.command != "GET":
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED)
            return False
        return True

    def do_GET(self) -> None:
        """Give a file of the page, or the events."""
        prefix = self.server.prefix
        if not secrets.compare_digest(self.path[: len(prefix)].encode("latin-1"), prefix.encode()):
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        path = self.path[len(prefix) :].partition("?")[0]
        if path == EVENTS:
            self._begin(HTTPStatus.OK, "text/event-stream; charset=utf-8")
            with closing(self.server.document.read(self.headers.get("Last-Event-ID"))) as events:
                for event in events:
                    self.wfile.write(event)
        elif path in self.server.files:
            content, kind = self.server.files[path]
            self._begin(HTTPStatus.OK, kind, len(content))
            self.wfile.write(content)
        else:
            self._refuse(HTTPStatus.NOT_FOUND)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is no request; the base class would repeat it, on a page without our headers."""
        self._refuse(HTTPStatus(code))

    def _refuse(self, status: HTTPStatus) -> None:
        content = f"{status.value} {status.phrase}\n".encode()
        self._begin(status, "text/plain; charset=utf-8", len(content))
        if self.command != "HEAD":
            self.wfile.write(content)

    def _begin(self, status: HTTPStatus, kind: str, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET")
        self.end_headers()

    def version_string(self) -> str:
        """Say no more of the program than its name."""
        return "minifocal"

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: the terminal belongs to the training."""

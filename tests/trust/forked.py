"""Work in forked processes: each begins with everything imported, and dies with whatever was done to it."""

import os
import resource
import selectors
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SPARE_BYTES = 8 * 2**30  # what a child may ask for beyond what it begins with
Say = Callable[[str], None]


@dataclass
class Ended:
    """A child that came to its end.

    Attributes:
        task: what it was to do. said: its lines. signal: what it died of, or None.
    """

    task: Any
    said: list[str]
    signal: int | None


@dataclass
class _Child:
    task: Any
    pid: int
    folder: Path
    heard: bytearray = field(default_factory=bytearray)


def in_children(tasks: Iterable[Any], work: Callable[[Any, Say, Path], None], jobs: int) -> Iterator[Ended]:
    """Do `work(task, say, folder)` in a child for each task, several at a time; give them as they end.

    A child says lines by `say`; its folder is its own and goes with it. An exception ends it as a return does.
    """
    selector = selectors.DefaultSelector()
    waiting = iter(tasks)
    alive = 0
    try:
        while True:
            while alive < jobs and (task := next(waiting, None)) is not None:
                reader, child = _fork(task, work)
                selector.register(reader, selectors.EVENT_READ, child)
                alive += 1
            if not alive:
                return
            for key, _ in selector.select():
                child = key.data
                if received := os.read(key.fd, 65536):
                    child.heard += received
                    continue
                selector.unregister(key.fd)
                os.close(key.fd)
                alive -= 1
                yield _end(child)
    finally:
        for key in list(selector.get_map().values()):
            os.kill(key.data.pid, signal.SIGKILL)
            _end(key.data)
        selector.close()


def limit_seconds(seconds: float) -> None:
    """Let this process die when it has computed for that long from now, or waited for ten times as long."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 10 * seconds)


def _fork(task: Any, work: Callable[[Any, Say, Path], None]) -> tuple[int, _Child]:
    folder = Path(tempfile.mkdtemp(prefix="mutant-"))
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return reader, _Child(task, pid, folder)
    try:
        os.close(reader)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
        pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
        if pages:
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + SPARE_BYTES,) * 2)
        work(task, lambda line: _write(writer, line), folder)
    except BaseException as error:
        _write(writer, f"error\t{type(error).__name__}: {error}".replace("\n", " "))
    finally:
        os._exit(0)


def _write(writer: int, line: str) -> None:
    data = f"{line}\n".encode()
    while data:
        data = data[os.write(writer, data) :]


def _end(child: _Child) -> Ended:
    _, status = os.waitpid(child.pid, 0)
    shutil.rmtree(child.folder, ignore_errors=True)
    died_of = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    return Ended(child.task, child.heard.decode(errors="replace").splitlines(), died_of)

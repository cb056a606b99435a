"""Watching a reader: it may give anything, or refuse in one line; nothing else, and it may do nothing but read."""

import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from minifocal.errors import InputError, one_line

LONGEST = 1000  # characters of a message, whatever stands in the file
SECONDS = 20  # of processor time for one file; an image of 89 million pixels takes a quarter of it

# What no reader may do, whatever stands in a file.

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "ctypes.dlopen")
FORBIDDEN += ("os.symlink", "os.chmod", "os.chown", "pty.spawn", "code.__new__")
# What it may do in its own folder only, and which of the arguments say where.
CHANGES = {
    "os.mkdir": 1, "os.rmdir": 1, "os.remove": 1, "os.truncate": 1, "os.rename": 2, "os.link": 2, "shutil.rmtree": 1,
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# From where anything may be read: Python, its packages and this one, and what the system tells of itself.
READABLE = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), "/proc/", "/sys/", "/dev/null", "/dev/urandom")


class Forbidden(BaseException):
    """A reader began what no reader may do."""


class Watch:
    """Looks at what Python reports of the reader (audit events): processes, network, files written elsewhere."""

    def __init__(self) -> None:
        self.on, self.root, self.seen = False, "", ""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in FORBIDDEN:
            self.seen = event
        elif event == "open":
            writes = args[2] & WRITING if isinstance(args[2], int) else 0
            self._look_where("write" if writes else "read", args[0], () if writes else READABLE)
        elif event in ("os.listdir", "os.scandir"):
            self._look_where(event, args[0], READABLE)
        elif event in CHANGES:
            for end in args[: CHANGES[event]]:
                self._look_where(event, end)

    def _look_where(self, event: str, path: Any, also: tuple[str, ...] = ()) -> None:
        where = os.path.realpath(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else ""
        if where and not where.startswith((self.root, "/dev/null", f"{tempfile.gettempdir()}/minifocal-", *also)):
            self.seen = f"{event} {where}"


WATCH = Watch()


class TooLong(Exception):  # noqa: N818  # as Forbidden
    """A file took more processor time than any may."""


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TooLong(f"more than {SECONDS} s")


def watched(allowed: tuple[type[Exception], ...], read: Callable[[bytes], object], data: bytes) -> str:
    """Read a file; give "read", or the message with which it was refused.

    Raises:
        whatever is not documented.
    """
    signal.signal(signal.SIGVTALRM, _too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    WATCH.seen, WATCH.on = "", True
    message = "read"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read(data)
    except InputError as error:
        message = str(error)
        assert message == one_line(message), f"a message of several lines: {message!r:.300}"
        assert len(message) <= LONGEST, f"a message of {len(message)} characters: {message[:300]}"
    except allowed as error:
        message = type(error).__name__
    finally:
        WATCH.on = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    if WATCH.seen:
        raise Forbidden(WATCH.seen)
    return message

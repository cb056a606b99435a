"""Watching a reader: it may give anything, or refuse in one line; nothing else, and it may do nothing but read."""

import os
import signal
import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

from minifocal.errors import InputError, one_line

LONGEST = 1000  # characters of a message, whatever stands in the file
SECONDS = 20  # of processor time for one file; an image of 89 million pixels takes a quarter of it

# What no reader may do, whatever stands in a file.

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "ctypes.dlopen")
FORBIDDEN += ("os.symlink", "os.chmod", "os.chown", "pty.spawn", "code.__new__")


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
        elif event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
            self._look_where("write", args[0])
        elif event == "os.link":  # the last checkpoint stands as the previous one too
            for end in args[:2]:
                self._look_where(event, end)

    def _look_where(self, event: str, path: Any) -> None:
        where = os.path.realpath(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else ""
        if where and not where.startswith((self.root, "/dev/null", "/tmp/minifocal-")):
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

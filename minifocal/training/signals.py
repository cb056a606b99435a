"""Signals that ask a run to stop."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def first_signal(ask_to_stop: Callable[[int], None]) -> Iterator[None]:
    """Turn the first Ctrl-C, or a scheduler's SIGTERM, into a wish to stop; leave a second one as it was.

    Args:
        ask_to_stop: is told the number of the signal.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # Left alone is what was set outside Python, and what is ignored, as Ctrl-C is in a script's background.
    before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    if threading.current_thread() is not threading.main_thread():
        yield  # whoever runs the main thread sees to signals
        return

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def hear(number: int, frame: Any) -> None:
        ask_to_stop(number)
        put_back()

    for number in before:
        signal.signal(number, hear)
    try:
        yield
    finally:
        put_back()

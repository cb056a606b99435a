"""One exception for everything a user can put right."""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

LONGEST_MESSAGE = 1000  # characters
CUT = " ... "


class InputError(ValueError):
    """What was given cannot be used.

    The message is one line: what was expected, what came, and what to do. The command line prints it
    and exits with status 2. A mistake of the package itself raises something else.

    Args:
        message: the line. Of names and texts that came from a file it may hold anything: what is not printable becomes
            spaces, and of more than 1,000 characters the middle is left out.
    """

    def __init__(self, message: str) -> None:
        if len(message) > LONGEST_MESSAGE:
            half = (LONGEST_MESSAGE - len(CUT)) // 2
            message = message[:half] + CUT + message[-half:]
        super().__init__(one_line(message))


def check_option_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names of options that do not exist, and list those that do.

    Raises:
        InputError: a name in `given` that is not in `known`.
    """
    names = list(known)
    unknown = sorted(name if name.isidentifier() else shown(name) for name in set(given) - set(names))
    if unknown:
        raise InputError(f"unknown option {', '.join(unknown)}; the options are {', '.join(names)}")


def is_integer(value: Any) -> bool:
    """Whether a value is an integer, Python's or NumPy's; True and False are none here."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Whether a value is a finite number, Python's or NumPy's; True and False are none here."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floating-point numbers
        return False


def shown(value: Any) -> str:
    """Give a value that came from a file as part of a message: one short line, whatever it is.

    Of anything but plain values, and lists of them, only the type is named: a structure that refers to itself, or a
    number of a million digits, would take for ever to print.
    """
    if isinstance(value, list | tuple) and len(value) <= 8:
        items = ", ".join(map(_shown_plain, value))
        comma = "," if len(value) == 1 else ""
        return f"({items}{comma})"[:80] if isinstance(value, tuple) else f"[{items}]"[:80]
    return _shown_plain(value)


def _shown_plain(value: Any) -> str:
    if isinstance(value, str | bytes):
        return repr(value[:60])
    enormous = isinstance(value, Integral) and abs(int(value)) >= 10**30
    if value is None or (isinstance(value, Real) and not enormous):
        return str(value)
    return f"a {type(value).__name__}"


def check_integer(name: str, value: Any, at_least: int, at_most: int | None = None) -> None:
    """Refuse what is no integer, or too small or too large a one.

    Raises:
        InputError: naming the option.
    """
    if not is_integer(value) or value < at_least:
        raise InputError(f"{name} must be an integer of at least {at_least}, got {shown(value)}")
    if at_most is not None and value > at_most:
        raise InputError(f"{name} must be at most {at_most}, got {shown(value)}")


def one_line(text: str) -> str:
    """Make one printable line of text that may come from a file or another library."""
    return "".join(letter if letter.isprintable() else " " for letter in text)

"""One exception for everything a user can put right."""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


class InputError(ValueError):
    """What was given cannot be used.

    The message is one line: what was expected, what came, and what to do. The command line prints it
    and exits with status 2. A mistake of the package itself raises something else.
    """


def check_option_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names of options that do not exist, and list those that do.

    Raises:
        InputError: a name in `given` that is not in `known`.
    """
    names = list(known)
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise InputError(f"unknown option {', '.join(unknown)}; the options are {', '.join(names)}")


def is_integer(value: Any) -> bool:
    """Whether a value is an integer, Python's or NumPy's; True and False are none here."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Whether a value is a finite number, Python's or NumPy's; True and False are none here."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_integer(name: str, value: Any, at_least: int) -> None:
    """Refuse what is no integer, or too small a one.

    Raises:
        InputError: naming the option.
    """
    if not is_integer(value) or value < at_least:
        raise InputError(f"{name} must be an integer of at least {at_least}, got {value!r}")

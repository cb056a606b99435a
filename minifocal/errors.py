"""One exception for everything a user can put right."""

from collections.abc import Iterable


class InputError(ValueError):
    """What was given cannot be used.

    The message is one line: what was expected, what came, and what to do. The command line prints it
    and exits with status 2; nothing else in the package raises it for its own mistakes.
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

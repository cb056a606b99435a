"""One exception for everything a user can put right."""


class InputError(ValueError):
    """What was given cannot be used.

    The message is one line: what was expected, what came, and what to do. The command line prints it
    and exits with status 2; nothing else in the package raises it for its own mistakes.
    """

"""The command line: one file per command. The only room that prints and that reads arguments.

A command is a module with `HELP` (one line), `EXAMPLE`, `add_arguments(parser)` and `run(args) -> exit status`.
"""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from minifocal.cli import (
    bench,
    convert,
    data,
    doctor,
    evaluate,
    explain,
    figures,
    gradcheck,
    learn,
    models,
    predict,
    summary,
    trace,
    train,
)
from minifocal.cli.common import failure

COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "explain": explain,
    "gradcheck": gradcheck,
    "learn": learn,
    "summary": summary,
    "models": models,
    "convert": convert,
    "data": data,
    "trace": trace,
    "figures": figures,
    "bench": bench,
    "doctor": doctor,
}


class Parser(argparse.ArgumentParser):
    """Says in one line what was wrong, and where to look."""

    def error(self, message: str) -> NoReturn:
        """Print the line and exit with status 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def make_parser() -> Parser:
    """Put all commands together."""
    parser = Parser(
        prog="minifocal",
        description="FocalNet in NumPy and CuPy, every gradient written by hand.",
        epilog="example: minifocal train   (the embedded digits, under a minute)",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=f"{module.HELP}.",
            epilog=f"example: {module.EXAMPLE}",
            allow_abbrev=False,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        the exit status: 0 done, 1 a check or a training failed, 2 the input cannot be used, 130 interrupted,
        141 the reader of the output has gone, 143 a training was stopped by SIGTERM, and saved.
    """
    _escape_what_cannot_be_printed()
    args = make_parser().parse_args(argv)
    try:
        status: int = args.run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        _drop_output()
        return 128 + 13  # as a program that SIGPIPE ends
    except (KeyboardInterrupt, Exception) as error:
        known = failure(error)
        if known is None:
            raise
        message, status = known
        if isinstance(error, OSError):
            _drop_output()
    print(f"minifocal {args.command}: {message}", file=sys.stderr)
    return status


def _escape_what_cannot_be_printed() -> None:
    """A terminal without Φ, or a file name that is no text, is no reason to stop: print an escape in its place."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Send what is left in the buffer of standard output nowhere: Python would fail again on it at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""The command line: one file a command. The only room that prints and that reads arguments.

A command is a module with `HELP` (one line), `EXAMPLE`, `add_arguments(parser)` and `run(args) -> exit status`.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from minifocal.cli import data, doctor, evaluate, figures, gradcheck, models, predict, summary, train
from minifocal.errors import InputError
from minifocal.training.trainer import TrainingError

COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "gradcheck": gradcheck,
    "summary": summary,
    "models": models,
    "data": data,
    "figures": figures,
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
        the exit status: 0 done, 1 a check or a training failed, 2 the input cannot be used, 130 interrupted.
    """
    args = make_parser().parse_args(argv)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read our output has stopped reading
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (InputError, TrainingError) as error:
        print(f"minifocal {args.command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1

"""A command that several ranks run together, started by MPI's launcher: the first one speaks, and all end together."""

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Callable

from minifocal.cli.common import failure
from minifocal.errors import InputError
from minifocal.training.fingerprint import check_same
from minifocal.training.ranks import Ranks, join_ranks

GRACE = 2.0  # seconds within which ranks that fail for the same reason say so


def run_together(command: str, body: Callable[[Ranks], int]) -> int:
    """Run a command in this process and those that were started with it, if any.

    What the first rank prints is heard. A rank that fails alone says who it is and ends the job, since the others would
    wait for it; where all fail, the first one says why.

    Args:
        command: its name. body: given the ranks, gives the exit status.
    """
    ranks = join_ranks()
    if ranks.size == 1:
        return body(ranks)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(sys.stdout if ranks.is_first else nowhere):
            return body(ranks)
    except (KeyboardInterrupt, Exception) as error:
        known = failure(error)
        message, status = known or ("".join(traceback.format_exception(error)), 1)
        together = ranks.all_fail(GRACE)
        if not together:
            print(f"minifocal {command}: {ranks.names[ranks.rank]} failed, the job ends: {message}", file=sys.stderr)
        elif ranks.is_first:
            print(f"minifocal {command}: {message}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        if together:
            ranks.all_fail(GRACE)  # the first one has said it
        if not together or not isinstance(error, InputError):  # sums may be under way, which MPI would wait for
            ranks.abort(status)
        return status


def launch_command(ranks: Ranks) -> str:
    """Give what stands before a command that as many ranks run."""
    return f"mpiexec -n {ranks.size} " if ranks.size > 1 else ""


def check_alike(args: argparse.Namespace, ranks: Ranks) -> None:
    """Refuse ranks that were started with other options.

    Raises:
        InputError: it says which option.
    """
    values = {f"--{name.replace('_', '-')}": str(value) for name, value in vars(args).items() if name != "run"}
    check_same(ranks, {f"the values of {name}": value for name, value in values.items()})


def device_of_rank(device: str, ranks: Ranks) -> str:
    """Give the device of this rank: of several on a machine, "cuda" is for each one of its own.

    Raises:
        InputError: they would share one.
    """
    if ranks.local_size == 1 or device == "cpu":
        return device
    if device != "cuda":
        raise InputError(
            f"{ranks.local_size} ranks on this machine cannot share {device}: give --device cuda, and each takes one"
        )
    return f"cuda:{ranks.local_rank}"

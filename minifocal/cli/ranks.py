"""A command that several ranks run together, started by MPI's launcher: the first one speaks, and all end together."""

import argparse
import contextlib
import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterator

from minifocal.cli.common import failure
from minifocal.errors import InputError
from minifocal.training.fingerprint import check_same
from minifocal.training.ranks import FirstRankError, Ranks, join_ranks
from minifocal.training.signals import first_signal

GRACE = 2.0  # seconds within which ranks that fail for the same reason say so


def run_in_ranks(command: str, body: Callable[[Ranks], int]) -> int:
    """Run a command in this process and those that were started with it, if any.

    What the first rank prints is heard. A rank that fails alone says who it is and ends the job, since the others would
    wait for it; where all fail, the first one says why, and who has another reason.

    Args:
        command: its name. body: given the ranks, gives the exit status.
    """
    ranks = join_ranks()
    if ranks.size == 1:
        return body(ranks)
    try:
        with (
            open(os.devnull, "w", encoding="utf-8", errors="backslashreplace") as nowhere,
            contextlib.redirect_stdout(sys.stdout if ranks.is_first else nowhere),
        ):
            return body(ranks)
    except BaseException as error:
        return _end(command, ranks, error)


def _end(command: str, ranks: Ranks, error: BaseException) -> int:
    """Say what is to be said of a failure, and end the job where the others go on."""
    reason, status = failure(error) or ("".join(traceback.format_exception(error)), 1)
    reasons = ranks.all_fail(reason, GRACE)
    if reasons is None:
        _say(f"minifocal {command}: {ranks.names[ranks.rank]} failed, the job ends: {reason}")
    elif ranks.is_first:
        _say(f"minifocal {command}: {reason}")
    elif not reasons[0].startswith(reason) and not isinstance(error, FirstRankError):  # it may know what to do as well
        _say(f"minifocal {command}: {ranks.names[ranks.rank]}: {reason}")
    if reasons is not None:
        ranks.all_fail(reason, GRACE)  # all have said it
    if reasons is None or not isinstance(error, InputError):  # sums may be under way, which MPI would wait for
        ranks.abort(status)
    return status


def _say(text: str) -> None:
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def leaving_together(ranks: Ranks) -> Iterator[None]:
    """Leave the `with` block when all ranks do; a signal meant for all, which some get later, ends none of them."""
    if ranks.size == 1:
        yield
        return
    with first_signal(lambda number: None):
        yield
        ranks.any(False)


def launch_command(ranks: Ranks) -> str:
    """Give what stands before a command that as many ranks run."""
    return f"mpiexec -n {ranks.size} " if ranks.size > 1 else ""


def check_alike(args: argparse.Namespace, ranks: Ranks) -> None:
    """Refuse ranks that were started with other options.

    Raises:
        InputError: it says which option.
    """
    values = {f"--{name.replace('_', '-')}": str(value) for name, value in vars(args).items() if name != "run"}
    named = {f"the values of {name}": value for name, value in values.items()}
    check_same(ranks, named, "start all ranks with the same options")


def device_of_rank(device: str, ranks: Ranks) -> str:
    """Give the device of this rank: of several on a machine, "cuda" is for each one of its own.

    A launcher may show each rank a GPU of its own already, which is then the first one for all of them.

    Raises:
        InputError: they would share one.
    """
    if ranks.size == 1 or device == "cpu":
        return device
    seen = platform.node(), os.environ.get("CUDA_VISIBLE_DEVICES")
    everyone = ranks.gather(seen)
    if device == "cuda":
        return f"cuda:{everyone[: ranks.rank].count(seen)}"
    sharing = max(map(everyone.count, everyone))
    if sharing > 1:
        raise InputError(f"{sharing} ranks of a machine cannot share {device}: give --device cuda, and each takes one")
    return device

"""Fail in one rank or in all, in the way that is named: `python mpi_failing.py memory 1`."""

import sys

from minifocal.cli.ranks import run_in_ranks
from minifocal.errors import InputError
from minifocal.training.ranks import Ranks

ERRORS = {"memory": MemoryError("7 GiB"), "input": InputError("no such folder"), "bug": ZeroDivisionError("a bug")}


def main(ranks: Ranks) -> int:
    print("heard")
    ranks.any(False)
    if sys.argv[2] in (str(ranks.rank), "all"):
        raise ERRORS[sys.argv[1]]
    if sys.argv[1] == "first":
        ranks.from_first(fail)
    ranks.any(False)
    return 0


def fail() -> None:
    raise InputError("only the first rank knows")


if __name__ == "__main__":
    sys.exit(run_in_ranks("failing", main))

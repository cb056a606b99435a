"""Mutation testing of the mathematics: every mutant must fail a test.

    python tests/trust/mutate.py                       # run the mutants that are new or that survived
    python tests/trust/mutate.py --all --jobs 2        # run all again: more than half an hour
    python tests/trust/mutate.py --verify --sample 25  # does each still die by the test that the record names?
    python tests/trust/mutate.py --only layer_norm     # those whose module or function has this in its name

The record is mutants.tsv beside this file, kept up to date while it runs: interrupted, it goes on where it was. A
mutant that no test can tell from the original stands in equivalent_mutants.tsv, with the reason.

First each test runs once, to see which lines it passes through. Then each mutant is put into a forked process, in which
the tests that pass through its line run, the short and narrow ones first, until one fails. A test that runs far beyond
its time has failed. Where the line runs already while tests are imported, and where a mistake is not in a function's
body, the package is imported anew with the mistake in it.
"""

import argparse
import sys
from pathlib import Path

from mutant_record import Record, read_equivalents
from mutant_runs import Runner
from mutants import all_mutants


def main() -> int:
    """Run the mutants; 0 where none survives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="run all, also those that the record says are killed")
    parser.add_argument("--verify", action="store_true", help="run for each killed mutant the test that killed it")
    parser.add_argument("--sample", type=int, metavar="N", help="of these, N, evenly spread")
    parser.add_argument("--only", default="", metavar="TEXT", help="of these, those whose module or function has TEXT")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at a time")
    parser.add_argument("--budget", type=float, default=8.0, metavar="S", help="seconds of tests for a mutant, at most")
    arguments = parser.parse_args()
    mutants = all_mutants()
    record = Record(Path(__file__).with_name("mutants.tsv"), mutants)
    argued = read_equivalents()
    chosen = [m for m in mutants if arguments.only in f"{m.path}:{m.function}" and m.name not in argued]
    if arguments.verify:
        chosen = [m for m in chosen if record.outcome(m) in ("killed", "timeout")]
    elif not arguments.all:
        chosen = [m for m in chosen if record.outcome(m) not in ("killed", "timeout")]
    if arguments.sample:
        chosen = [chosen[i * len(chosen) // arguments.sample] for i in range(min(arguments.sample, len(chosen)))]
    survivors = Runner(arguments.jobs, arguments.budget).run(chosen, record, only_recorded=arguments.verify)
    for mutant in survivors:
        print("survived:", " | ".join(mutant.name))
    print(f"{len(chosen)} mutants run, {len(survivors)} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())

"""`minifocal bench --ranks`: training on several ranks under MPI, beside one process, and beside what a model says."""

import argparse

from minifocal.bench import rank_jobs, rank_results, report
from minifocal.bench.workloads import Workload
from minifocal.cli.common import progress_bar, table
from minifocal.errors import check_integer
from minifocal.threads import core_count
from minifocal.viz.rank_pictures import draw_ranks

MOST_RANKS = 256  # on one machine: more are a mistake of the keyboard


def compare(workloads: list[Workload], args: argparse.Namespace) -> int:
    """Measure, and print what was measured and what follows for more machines."""
    for ranks in args.ranks:
        check_integer("--ranks", ranks, at_least=1, at_most=MOST_RANKS)
    rank_jobs.find_mpiexec()
    cores = core_count()
    plan = [
        (workload, ops, rank_jobs.plan_jobs(args.ranks, workload.batch, cores))
        for workload in workloads
        for ops in args.ops
    ]
    found = []
    with progress_bar(sum(len(jobs) for *_, jobs in plan) * args.rounds, " jobs") as bar:
        for workload, ops, jobs in plan:
            bar.set_description(f"{workload.name}, {ops}")
            told = rank_jobs.time_jobs(jobs, workload, ops, args.rounds, bar.update)
            found.append(rank_results.series(workload, ops, told, cores))
    results = rank_results.results(found, args.rounds)
    series, curves = rank_results.read_series(results)
    print(f"training images per second, of one batch: one process with {cores} threads, ranks with one thread each")
    print(table(*rank_results.results_table(results), left=3))
    if curves:
        print("on paper, machines like this one with all their cores, as many times as fast as one")
        print(table(*rank_results.paper_table(results), left=4))
    if args.json:
        report.write_json(args.json, results)
    if args.picture:
        draw_ranks(series, curves, args.picture)
    return 0

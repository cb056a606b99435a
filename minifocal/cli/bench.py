"""`minifocal bench`: how fast training and inference are, beside PyTorch and the bare matrix products."""

import argparse
import os
import sys
from pathlib import Path

from tqdm import tqdm

from minifocal.bench import check, peers, report, scaling
from minifocal.bench.candidates import FLOOR, time_candidates
from minifocal.bench.measure import DEFAULT_ROUNDS, MIN_ROUNDS, WARM_UPS, NotMeasuredError
from minifocal.bench.processes import in_new_process, peak_memory, start_up
from minifocal.bench.profile import WAYS, profile
from minifocal.bench.workloads import MODES, WORKLOADS, Workload
from minifocal.cli.common import on_terminal, table
from minifocal.errors import InputError, check_integer
from minifocal.ops import TABLES, get_ops, list_ops
from minifocal.threads import THREAD_VARIABLES
from minifocal.viz.speed_pictures import draw_scaling, draw_speeds

HELP = "measure training and inference, ours beside PyTorch's, as ratios"
EXAMPLE = "minifocal bench --workload small edifice --mode train --against none"

ALL = "all"
TORCH, NOTHING = "torch", "none"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is measured, beside what, and where the results go."""
    parser.add_argument(
        "--workload", nargs="+", choices=[*WORKLOADS, ALL], default=["small"], help="networks (default: small)"
    )
    parser.add_argument("--mode", nargs="+", choices=list(MODES), default=list(MODES), help="default: all three")
    parser.add_argument(
        "--ops",
        nargs="+",
        metavar="TABLE",
        help=f"default: those present of {', '.join(TABLES)}",
    )
    parser.add_argument("--against", choices=[TORCH, NOTHING], help="default: torch where it is installed")
    parser.add_argument(
        "--rounds", type=int, default=DEFAULT_ROUNDS, help=f"of which the median is taken (default: {DEFAULT_ROUNDS})"
    )
    parser.add_argument("--threads", type=int, help="of everyone (default: as the environment says, or one a core)")
    parser.add_argument(
        "--memory", action=argparse.BooleanOptionalAction, default=True, help="peak memory and start-up (default: yes)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the results")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="where to draw them, as a PNG file")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--profile", action="store_true", help="show where the time goes, by operation")
    instead.add_argument("--check", action="store_true", help="compare loss and gradients with the reference's")
    instead.add_argument("--scaling", action="store_true", help="show how cost grows with images and pixels")


def run(args: argparse.Namespace) -> int:
    """Measure, and print tables; fail where a check does."""
    check_integer("rounds", args.rounds, at_least=MIN_ROUNDS)
    args.ops = list(dict.fromkeys(get_ops(name).name for name in args.ops or list_ops()))
    args.mode = list(dict.fromkeys(args.mode))
    if (args.profile or args.check) and (args.json or args.picture):
        raise InputError("--profile and --check print what they find; leave --json and --picture out")
    if args.threads is not None:
        check_integer("threads", args.threads, at_least=1)
        wanted = dict.fromkeys(THREAD_VARIABLES, str(args.threads))
        if not wanted.items() <= os.environ.items():  # they are read when BLAS is loaded: start anew
            os.environ.update(wanted)
            return in_new_process(run, args)
    names = WORKLOADS if ALL in args.workload else dict.fromkeys(args.workload)
    workloads = [WORKLOADS[name] for name in names]
    if args.check:
        return _check(workloads, args.ops)
    if args.profile:
        return _profile(workloads, args.ops)
    if args.scaling:
        return _scaling(args)
    return _compare(workloads, args)


def _compare(workloads: list[Workload], args: argparse.Namespace) -> int:
    candidates = [FLOOR, *_peers(args.against), *args.ops]
    rows, notes = [], []
    runs = len(workloads) * len(args.mode) * len(candidates) * (WARM_UPS + args.rounds)
    with _bar(runs, " runs") as bar:
        for workload in workloads:
            for mode in (MODES[name] for name in args.mode):
                bar.set_description(f"{workload.name}, {mode.title}")
                seconds, left_out = time_candidates(candidates, workload, mode, args.rounds, bar.update)
                rows.append(report.row(workload.name, mode.name, seconds))
                notes += left_out
    memory, started = {}, {}
    if args.memory:
        try:
            memory = _memory(workloads, candidates) if "train" in args.mode else {}
        except NotMeasuredError as error:
            notes.append(str(error))
        with _bar(None, " starts") as bar:
            started = report.relative_start_up(start_up(peers.EAGER in candidates, bar.update))
    results = report.results(rows, args.rounds, memory, started)
    print(table(*report.results_table(results), left=3))
    if started:
        print("start-up, as a multiple of import numpy: " + ", ".join(f"{k} {v:.2f}" for k, v in started.items()))
    for note in dict.fromkeys(notes):
        print(f"minifocal bench: {note}", file=sys.stderr)
    if args.json:
        report.write_json(args.json, results)
    if args.picture:
        draw_speeds(*report.speeds(results), args.picture)
    return 0


def _peers(against: str | None) -> tuple[str, ...]:
    """Name the ways of PyTorch to compare with."""
    missing = peers.missing()
    if against == NOTHING:
        return ()
    if missing and against == TORCH:
        raise InputError(f"--against torch needs {' and '.join(missing)}: pip install minifocal[peers]")
    if missing:
        text = f"without PyTorch: {' and '.join(missing)} not installed (pip install minifocal[peers])"
        print(f"minifocal bench: {text}", file=sys.stderr)
        return ()
    return peers.WAYS


def _memory(workloads: list[Workload], candidates: list[str]) -> dict[str, dict[str, float]]:
    # The floor trains nothing; and of what torch.compile takes, most is the compiler's.
    training = [candidate for candidate in candidates if candidate not in (FLOOR, peers.COMPILED)]
    memory = {}
    with _bar(len(workloads) * len(training), " processes") as bar:
        for workload in workloads:
            peaks = {}
            for candidate in training:
                peaks[candidate] = peak_memory(candidate, workload)
                bar.update()
            memory[workload.name] = report.relative_memory(peaks)
    return memory


def _check(workloads: list[Workload], tables: list[str]) -> int:
    failed = False
    rows = []
    with _bar(len(workloads) * (1 + len(tables)) * check.STEPS, " steps") as bar:
        for workload in workloads:
            reference = check.train(workload, "reference", bar.update)
            for ops in tables:
                found = check.compare(check.train(workload, ops, bar.update), reference)
                failed |= not found.passed
                verdict = "pass" if found.passed else "FAIL"
                errors = f"{found.loss:.1e}", f"{found.gradient:.1e}"
                rows.append([workload.name, ops, verdict, *errors, found.parameter])
    head = ["workload", "ops", "", "loss", "gradients", "farthest of all"]
    print(f"after {check.STEPS} steps, relative to the reference; at most {check.TOLERANCE:.0e} passes")
    print(table(head, rows, left=3))
    return 1 if failed else 0


def _profile(workloads: list[Workload], tables: list[str]) -> int:
    for workload in workloads:
        for ops in tables:
            found = profile(workload, ops)
            rows = []
            for row in found.rows:
                cells = ((f"{row.shares[way]:.1%}", str(row.calls[way])) for way in WAYS)
                rows.append([row.name, *(cell for pair in cells for cell in pair)])
            rows.append(["the rest", f"{found.rest:.1%}", "", "", ""])
            print(f"{workload.name}, training step with {ops}: share of the time, calls in a step")
            print(table(["operation", *(head for way in WAYS for head in (way, "calls"))], rows))
    return 0


def _scaling(args: argparse.Namespace) -> int:
    if len(args.ops) != 1:
        raise InputError(f"--scaling takes one table of operations: --ops {get_ops().name}")
    workloads = scaling.axes()
    with _bar(scaling.count_runs(workloads, args.rounds), " runs") as bar:
        results = scaling.measure_scaling(workloads, args.ops[0], args.rounds, bar.update)
    print(f"cost of each image and of each pixel with {args.ops[0]}, relative to the first size")
    print(table(*scaling.scaling_table(results)))
    if args.json:
        report.write_json(args.json, results)
    if args.picture:
        draw_scaling(results["series"], args.picture)
    return 0


def _bar(total: int | None, unit: str) -> tqdm:
    return tqdm(total=total, unit=unit, disable=not on_terminal(), leave=False)

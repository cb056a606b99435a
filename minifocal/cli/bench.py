"""`minifocal bench`: how fast training and inference are, beside PyTorch and the bare matrix products."""

import argparse
import os
import sys
from pathlib import Path

from minifocal.arrays import check_device
from minifocal.bench import check, peers, report, scaling
from minifocal.bench.candidates import FLOOR, time_candidates
from minifocal.bench.gpu_candidates import PRECISIONS as GPU_PRECISIONS
from minifocal.bench.gpu_candidates import ROUNDS as GPU_ROUNDS
from minifocal.bench.measure import DEFAULT_ROUNDS, MIN_ROUNDS, WARM_UPS, NotMeasuredError
from minifocal.bench.processes import in_new_process, peak_memory, start_up
from minifocal.bench.profile import WAYS, profile
from minifocal.bench.workloads import GPU_DEFAULT_MODES, GPU_MODES, MODES, WORKLOADS, Workload
from minifocal.cli import bench_gpu, bench_ranks
from minifocal.cli.common import add_device_argument, progress_bar, table
from minifocal.errors import InputError, check_integer
from minifocal.functional.precision import PRECISIONS
from minifocal.ops import TABLES, get_ops, list_ops
from minifocal.threads import THREAD_VARIABLES
from minifocal.viz.speed_pictures import draw_scaling, draw_speeds

HELP = "measure training and inference, ours beside PyTorch's, as ratios"
EXAMPLE = "minifocal bench --workload small edifice --mode train --against none"

ALL = "all"
TORCH, NOTHING = "torch", "none"


# What each way to measure makes use of; all else is refused.
USED = {
    "cpu": ("workload", "mode", "ops", "against", "rounds", "threads", "memory", "json", "picture"),
    "gpu": ("workload", "mode", "precision", "against", "rounds", "memory", "json", "picture"),
    "profile": ("workload", "ops", "threads"),
    "check": ("workload", "ops", "threads"),
    "scaling": ("ops", "rounds", "threads", "json", "picture"),
    "ranks": ("workload", "ops", "rounds", "json", "picture"),
    "kernels": ("json",),
}
OPTIONS = tuple(dict.fromkeys(name for names in USED.values() for name in names))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is measured, beside what, and where the results go."""
    parser.add_argument("--workload", nargs="+", choices=[*WORKLOADS, ALL], help="networks (default: small)")
    parser.add_argument(
        "--mode",
        nargs="+",
        choices=list(dict.fromkeys([*MODES, *GPU_MODES])),
        help=f"default: {', '.join(MODES)}; on a GPU: {', '.join(GPU_DEFAULT_MODES)}",
    )
    parser.add_argument(
        "--ops",
        nargs="+",
        metavar="TABLE",
        help=f"default: those present of {', '.join(TABLES)}",
    )
    add_device_argument(parser)
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        help=f"of matrix products, on a GPU (default: {', '.join(GPU_PRECISIONS)})",
    )
    parser.add_argument("--against", choices=[TORCH, NOTHING], help="default: torch where it is installed")
    parser.add_argument(
        "--rounds", type=int, help=f"of which the median is taken (default: {DEFAULT_ROUNDS}; on a GPU: {GPU_ROUNDS})"
    )
    parser.add_argument("--threads", type=int, help="of everyone (default: as the environment says, or one a core)")
    parser.add_argument(
        "--memory", action=argparse.BooleanOptionalAction, default=None, help="peak memory, start-up (default: yes)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the results")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="where to draw them, as a PNG file")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--profile", action="store_true", help="show where the time goes, by operation")
    instead.add_argument("--check", action="store_true", help="compare loss and gradients with the reference's")
    instead.add_argument("--scaling", action="store_true", help="show how cost grows with images and pixels")
    instead.add_argument(
        "--ranks", type=int, nargs="+", metavar="N", help="train on so many ranks under MPI, beside one process"
    )
    instead.add_argument("--kernels", action="store_true", help="measure a GPU's kernels against a copy")


def run(args: argparse.Namespace) -> int:
    """Measure, and print tables; fail where a check does."""
    kind = _kind(args)
    check_device(args.device)
    if args.rounds is not None:
        check_integer("rounds", args.rounds, at_least=MIN_ROUNDS)
    if args.threads is not None:
        check_integer("threads", args.threads, at_least=1)
        wanted = dict.fromkeys(THREAD_VARIABLES, str(args.threads))
        if not wanted.items() <= os.environ.items():  # they are read when BLAS is loaded: start anew
            os.environ.update(wanted)
            return in_new_process(run, args)
    args.memory = True if args.memory is None else args.memory
    names = WORKLOADS if ALL in (args.workload or ()) else dict.fromkeys(args.workload or ["small"])
    workloads = [WORKLOADS[name] for name in names]
    if kind == "kernels":
        return bench_gpu.kernels(args)
    if kind == "gpu":
        return bench_gpu.compare(workloads, args, torch=bool(_peers(args.against)))
    args.rounds = DEFAULT_ROUNDS if args.rounds is None else args.rounds
    if kind == "ranks":
        args.ops = args.ops or ["auto"]
    args.ops = list(dict.fromkeys(get_ops(name, args.device).name for name in args.ops or list_ops(args.device)))
    args.mode = list(dict.fromkeys(args.mode or MODES))
    if kind == "check":
        return _check(workloads, args.ops, args.device)
    if kind == "profile":
        return _profile(workloads, args.ops)
    if kind == "scaling":
        return _scaling(args)
    if kind == "ranks":
        return bench_ranks.compare(workloads, args)
    return _compare(workloads, args)


def _kind(args: argparse.Namespace) -> str:
    """Name the way to measure, and refuse options that it makes no use of."""
    on_cpu = args.device == "cpu"
    chosen = [name for name in ("profile", "check", "scaling", "ranks", "kernels") if getattr(args, name)]
    kind = chosen[0] if chosen else "cpu" if on_cpu else "gpu"
    way = f"--{kind}" if chosen else f"--device {args.device}"
    if kind == "kernels" and on_cpu:
        raise InputError("--kernels measures a GPU; add --device cuda")
    if kind in ("profile", "scaling", "ranks") and not on_cpu:
        raise InputError(f"{way} measures the CPU; leave --device out")
    if on_cpu and "infer" in (args.mode or ()):
        raise InputError(f"mode infer is for a GPU; on the CPU choose {', '.join(MODES)}")
    unused = [name for name in OPTIONS if getattr(args, name) is not None and name not in USED[kind]]
    if unused:
        raise InputError(f"{way} makes no use of {', '.join(f'--{name}' for name in unused)}; leave it out")
    return kind


def _compare(workloads: list[Workload], args: argparse.Namespace) -> int:
    candidates = [FLOOR, *_peers(args.against), *args.ops]
    rows, notes = [], []
    runs = len(workloads) * len(args.mode) * len(candidates) * (WARM_UPS + args.rounds)
    with progress_bar(runs, " runs") as bar:
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
        with progress_bar(None, " starts") as bar:
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
    with progress_bar(len(workloads) * len(training), " processes") as bar:
        for workload in workloads:
            peaks = {}
            for candidate in training:
                peaks[candidate] = peak_memory(candidate, workload)
                bar.update()
            memory[workload.name] = report.relative_memory(peaks)
    return memory


def _check(workloads: list[Workload], tables: list[str], device: str) -> int:
    failed = False
    rows = []
    with progress_bar(len(workloads) * (1 + len(tables)) * check.STEPS, " steps") as bar:
        for workload in workloads:
            reference = check.train(workload, "reference", bar.update)
            for ops in tables:
                found = check.compare(check.train(workload, ops, bar.update, device), reference)
                failed |= not found.passed
                verdict = "pass" if found.passed else "FAIL"
                errors = f"{found.loss:.1e}", f"{found.gradient:.1e}"
                rows.append([workload.name, ops, verdict, *errors, found.parameter])
    head = ["workload", "ops", "", "loss", "gradients", "farthest of all"]
    print(f"after {check.STEPS} steps, relative to the reference on the CPU; at most {check.TOLERANCE:.0e} passes")
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
    with progress_bar(scaling.count_runs(workloads, args.rounds), " runs") as bar:
        results = scaling.measure_scaling(workloads, args.ops[0], args.rounds, bar.update)
    print(f"cost of each image and of each pixel with {args.ops[0]}, relative to the first size")
    print(table(*scaling.scaling_table(results)))
    if args.json:
        report.write_json(args.json, results)
    if args.picture:
        draw_scaling(results["series"], args.picture)
    return 0

"""`minifocal bench --device cuda`: ours beside PyTorch's on a GPU, and its kernels beside a copy."""

import argparse
import sys

from minifocal.arrays import use_device
from minifocal.bench import gpu_candidates, gpu_kernels, gpu_results, report
from minifocal.bench.measure import WARM_UPS, NotMeasuredError
from minifocal.bench.peers import COMPILED
from minifocal.bench.workloads import GPU_DEFAULT_MODES, GPU_MODES, Workload
from minifocal.cli.common import progress_bar, table
from minifocal.viz.speed_pictures import draw_speeds


def compare(workloads: list[Workload], args: argparse.Namespace, torch: bool) -> int:
    """Measure, and print a table; milliseconds are of this card."""
    use_device(args.device)
    workloads = [workload.for_gpu() for workload in workloads]
    rounds = args.rounds or gpu_candidates.ROUNDS
    precisions = list(dict.fromkeys(args.precision or gpu_candidates.PRECISIONS))
    modes = [GPU_MODES[name] for name in args.mode or GPU_DEFAULT_MODES]
    plan = [
        (workload, mode, precision, gpu_candidates.candidates(mode, precision, torch))
        for workload in workloads
        for mode in modes
        for precision in precisions
    ]
    rows, memory, notes = [], [], []
    with progress_bar(sum(len(names) for *_, names in plan) * (WARM_UPS + rounds), " runs") as bar:
        for workload, mode, precision, names in plan:
            bar.set_description(f"{workload.name}, {mode.title}, {precision}")
            seconds, left_out = gpu_candidates.time_candidates(
                names, workload, mode, precision, args.device, rounds, bar.update
            )
            rows.append(gpu_results.row(workload, mode, precision, seconds))
            notes += left_out
    # The floor trains nothing, and torch.compile takes what eager takes, after a minute of compiling.
    left = (gpu_candidates.FLOOR, COMPILED)
    training = [
        (workload, mode, precision, [name for name in names if name not in left])
        for workload, mode, precision, names in plan
        if mode.training and args.memory
    ]
    with progress_bar(sum(len(names) for *_, names in training), " processes") as bar:
        for workload, mode, precision, names in training:
            for name in names:
                try:
                    peak = gpu_candidates.peak_memory(name, workload, mode, precision, args.device)
                    memory.append({"workload": workload.name, "precision": precision, "candidate": name, "bytes": peak})
                except NotMeasuredError as error:
                    notes.append(str(error))
                bar.update()
    results = gpu_results.results(rows, rounds, memory)
    print(f"{results['machine']['gpu']}, {results['machine']['date']}")
    print(table(*gpu_results.results_table(results), left=4))
    for note in dict.fromkeys(notes):
        print(f"minifocal bench: {note}", file=sys.stderr)
    if args.json:
        report.write_json(args.json, results)
    if args.picture:
        draw_speeds(*gpu_results.speeds(results), args.picture)
    return 0


def kernels(args: argparse.Namespace) -> int:
    """Measure kernels against a copy; fail where a goal is missed."""
    use_device(args.device)
    listed = gpu_kernels.cases()
    copy = gpu_kernels.long_copy(args.device)
    bandwidth = gpu_kernels.copy_bandwidth(copy)
    found = []
    with progress_bar(len(listed), " kernels") as bar:
        for case in listed:
            bar.set_description(case.title)
            found.append(gpu_kernels.measure(case, bandwidth, args.device, copy))
            bar.update()
    print(f"a copy moves {bandwidth / 1e12:.2f} TB/s, read and written; batch {gpu_kernels.BATCH}, float32")
    print(table(*gpu_results.kernels_table(found), left=3))
    if args.json:
        report.write_json(args.json, gpu_results.kernels_json(found, bandwidth))
    return 1 if any(kernel.goal is not None and kernel.share < kernel.goal for kernel in found) else 0

"""Results of a GPU: milliseconds, since a card is known by its name, and ratios to PyTorch in the same precision."""

from statistics import median
from typing import Any

from minifocal.bench.gpu_candidates import FLOOR, FUSED
from minifocal.bench.gpu_kernels import Throughput
from minifocal.bench.machine import describe_gpu
from minifocal.bench.peers import COMPILED, EAGER
from minifocal.bench.workloads import GPU_MODES, Mode, Workload

DIGITS, NONE = 4, "-"


def row(workload: Workload, mode: Mode, precision: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Give one row of results: all samples and medians, in milliseconds."""
    samples = {name: [round(1000 * second, DIGITS) for second in values] for name, values in seconds.items()}
    medians = {name: round(median(values), DIGITS) for name, values in samples.items()}
    images = mode.images or workload.batch
    return {
        "workload": workload.name,
        "mode": mode.name,
        "images": images,
        "precision": precision,
        "milliseconds": samples,
        "medians": medians,
    }


def results(rows: list[dict[str, Any]], rounds: int, memory: list[dict[str, Any]]) -> dict[str, Any]:
    """Put everything together, with the card, the day and the versions."""
    return {"machine": describe_gpu(), "rounds": rounds, "rows": rows, "memory": memory}


def results_table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Lay out results, a line for each candidate of each row.

    Returns:
        the head, and the rows. "x eager" says how many times as fast as PyTorch eager in the same precision a candidate
        is, "x floor" how many times longer than the matrix products alone it takes; "MiB" is the peak of the device's
        memory.
    """
    head = ["workload", "mode", "precision", "candidate", "ms", "x eager", "x compiled", "x floor", "MiB"]
    peaks = {(m["workload"], m["precision"], m["candidate"]): m["bytes"] for m in results["memory"]}
    lines = []
    for found in results["rows"]:
        medians, mode = found["medians"], GPU_MODES[found["mode"]]
        for name, cost in medians.items():
            speeds = [f"{medians[way] / cost:.2f}" if way in medians else NONE for way in (EAGER, COMPILED)]
            over = f"{cost / medians[FLOOR]:.2f}" if FLOOR in medians else NONE
            peak = peaks.get((found["workload"], found["precision"], name)) if mode.training else None
            title = mode.title if mode.images else f"{mode.title} {found['images']}"
            memory = NONE if peak is None else f"{peak / 2**20:.0f}"
            lines.append([found["workload"], title, found["precision"], name, f"{cost:.3f}", *speeds, over, memory])
    return head, lines


def speeds(results: dict[str, Any]) -> tuple[list[tuple[str, str, dict[str, float]]], str]:
    """Turn the medians around, from costs to speeds, for a picture: times as fast as PyTorch eager, or as "cuda"."""
    base = EAGER if all(EAGER in found["medians"] for found in results["rows"]) else FUSED
    rows = []
    for found in results["rows"]:
        medians = found["medians"]
        title = f"{GPU_MODES[found['mode']].title}, {found['precision']}"
        rows.append((found["workload"], title, {name: medians[base] / cost for name, cost in medians.items()}))
    return rows, base


def kernels_table(found: list[Throughput]) -> tuple[list[str], list[list[str]]]:
    """Lay out what kernels came to."""
    head = ["operation", "k", "map", "ms", "of a copy", "goal"]
    lines = []
    for kernel in found:
        case = kernel.case
        size = f"{case.side}x{case.side}x{case.C}"
        goal = (
            NONE if kernel.goal is None else f"{kernel.goal:.0%} {'met' if kernel.share >= kernel.goal else 'MISSED'}"
        )
        lines.append([case.title, str(case.k or NONE), size, f"{kernel.milliseconds:.3f}", f"{kernel.share:.0%}", goal])
    return head, lines


def kernels_json(found: list[Throughput], bandwidth: float) -> dict[str, Any]:
    """Give what kernels came to, for a file."""
    rows = [
        {
            **kernel.case._asdict(),
            "milliseconds": round(kernel.milliseconds, DIGITS),
            "share": round(kernel.share, DIGITS),
        }
        for kernel in found
    ]
    return {"machine": describe_gpu(), "copy_bytes_per_second": round(bandwidth), "kernels": rows}

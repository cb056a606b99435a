"""Results as ratios: what goes into JSON, into the table and into the picture. No time in seconds leaves this file."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from minifocal.bench.candidates import FLOOR
from minifocal.bench.machine import describe_machine
from minifocal.bench.peers import EAGER, WAYS
from minifocal.bench.workloads import MODES
from minifocal.files import write_bytes

DIGITS = 4  # after the point
MOST = 1e9  # times as fast: more is no measurement
NONE = "-"
SPEED_HEADS = dict(zip(WAYS, ("x torch eager", "x channels-last", "x compiled"), strict=True))


def row(workload: str, mode: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Give one row of results: all samples and medians, divided by the median of torch eager, or of the floor."""
    base = EAGER if EAGER in seconds else FLOOR
    samples = _divided(seconds, by=median(seconds[base]))
    medians = {name: round(median(values), DIGITS) for name, values in samples.items()}
    return {"workload": workload, "mode": mode, "relative_to": base, "samples": samples, "medians": medians}


def relative_memory(peaks: dict[str, int]) -> dict[str, float]:
    """Divide peak memories by torch eager's, or by the first one."""
    base = peaks[EAGER] if EAGER in peaks else next(iter(peaks.values()))
    return {name: round(peak / base, DIGITS) for name, peak in peaks.items()}


def relative_start_up(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Divide the medians of start-up times by that of importing NumPy."""
    base = median(seconds["import numpy"])
    return {name: round(median(values) / base, DIGITS) for name, values in seconds.items()}


def results(
    rows: list[dict[str, Any]], rounds: int, memory: dict[str, dict[str, float]], start_up: dict[str, float]
) -> dict[str, Any]:
    """Put everything together, with the machine that it was measured on.

    Args:
        rows: as `row` gives them. rounds: that were measured.
        memory: as `relative_memory` gives it, by workload. start_up: as `relative_start_up` gives it.
    """
    return {"machine": describe_machine(), "rounds": rounds, "rows": rows, "memory": memory, "start_up": start_up}


def results_table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Lay out results, a line for each candidate of each row.

    Returns:
        the head, and the rows. "x torch eager" and the like say how many times faster than that the candidate is,
        "x floor" how many times longer than the matrix products alone it takes, "memory" its share of the peak
        memory of torch eager, or of the first candidate.
    """
    ways = [way for way in WAYS if any(way in row["medians"] for row in results["rows"])]
    head = ["workload", "mode", "candidate", *(SPEED_HEADS[way] for way in ways), "x floor"]
    if results["memory"]:
        head.append("memory")
    lines = []
    for row in results["rows"]:
        medians, mode = row["medians"], MODES[row["mode"]]
        for candidate, cost in medians.items():
            speeds = [f"{medians[way] / cost:.2f}" if way in medians else NONE for way in ways]
            line = [row["workload"], mode.title, candidate, *speeds, f"{cost / medians[FLOOR]:.2f}"]
            if results["memory"]:
                peak = results["memory"].get(row["workload"], {}).get(candidate) if mode.training else None
                line.append(NONE if peak is None else f"{peak:.2f}")
            lines.append(line)
    return head, lines


def speeds(results: dict[str, Any]) -> tuple[list[tuple[str, str, dict[str, float]]], str]:
    """Turn the medians of results around, from costs to speeds, for a picture; results from a file may hold anything.

    Returns:
        workload, mode and the speed of each candidate, row by row; and the candidate whose speed is 1.
    Raises:
        ValueError: a cost is no positive number.
    """
    rows = [
        (str(row["workload"]), MODES[row["mode"]].title, {name: 1.0 / cost for name, cost in row["medians"].items()})
        for row in results["rows"]
    ]
    if not all(0.0 < speed < MOST for _, _, by_name in rows for speed in by_name.values()):
        raise ValueError("costs are positive numbers")
    return rows, str(results["rows"][0]["relative_to"])


def write_json(path: Path, results: dict[str, Any]) -> None:
    """Write results. Raises InputError where the file cannot be written."""
    write_bytes(path, (json.dumps(results, indent=1) + "\n").encode())


def _divided(seconds: dict[str, list[float]], by: float) -> dict[str, list[float]]:
    return {name: [round(sample / by, DIGITS) for sample in samples] for name, samples in seconds.items()}

"""How the cost of a network grows with the number of images, and with their pixels: in proportion to both."""

from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

from minifocal.bench.candidates import prepare
from minifocal.bench.machine import describe_machine
from minifocal.bench.measure import WARM_UPS, interleave
from minifocal.bench.workloads import WORKLOADS, Mode, Workload

SIDE, IMAGES = 64, (1, 2, 4, 8, 16, 32, 64)  # more and more images of one size
BATCH, SIDES = 4, (64, 96, 128, 224, 320, 448)  # a few images, larger and larger
MODES = (
    Mode("train", "training step", training=True),
    Mode("infer", "inference", training=False),
)
MOST = 2**40  # images, pixels, or times as dear: more is no measurement
NET = replace(WORKLOADS["small"].config, image_size=SIDE, patch_size=4)


def axes(images: tuple[int, ...] = IMAGES, sides: tuple[int, ...] = SIDES) -> dict[str, dict[int, Workload]]:
    """Give the workloads along both axes: by number of images, and by pixels of an image."""
    return {
        "images": {count: Workload("scaling", NET, batch=count, init="lecun") for count in images},
        "pixels": {
            side * side: Workload("scaling", replace(NET, image_size=side), batch=BATCH, init="lecun") for side in sides
        },
    }


def count_runs(workloads: dict[str, dict[int, Workload]], rounds: int) -> int:
    """Count how often `measure_scaling` calls progress."""
    return len(MODES) * sum(map(len, workloads.values())) * (WARM_UPS + rounds)


def measure_scaling(
    workloads: dict[str, dict[int, Workload]], ops: str, rounds: int, progress: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Measure the cost at every size, relative to the first of its axis.

    Args:
        workloads: as `axes` gives them.
        ops: name of the table of operations.
        rounds: as in `interleave`. progress: called after every run.
    Raises:
        InputError: there is no such table.
    """
    series = []
    for axis, by_size in workloads.items():
        for mode in MODES:
            runs = {str(size): prepare(ops, workload, mode) for size, workload in by_size.items()}
            seconds = [median(samples) for samples in interleave(runs, rounds, progress).values()]
            cost = [round(second / seconds[0], 4) for second in seconds]
            series.append({"axis": axis, "mode": mode.title, "sizes": list(by_size), "cost": cost})
    return {"machine": describe_machine(), "ops": ops, "rounds": rounds, "series": series}


def scaling_table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Lay out what `measure_scaling` gave, a line for each size: the cost of one image, or of one pixel.

    Returns:
        the head, and the rows; a network whose cost grows in proportion has 1 everywhere.
    """
    series = {(line["axis"], line["mode"]): line for line in results["series"]}
    titles = [mode.title for mode in MODES]
    rows = []
    for axis in dict.fromkeys(axis for axis, _ in series):
        sizes = series[axis, titles[0]]["sizes"]
        for index, size in enumerate(sizes):
            costs = (series[axis, title]["cost"][index] * sizes[0] / size for title in titles)
            rows.append([axis, f"{size:,}", *(f"{cost:.2f}" for cost in costs)])
    return ["axis", "size", *(f"{title}, of each" for title in titles)], rows


def scaling_series(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the lines of the picture, read one by one: results from a file may hold anything.

    Raises:
        ValueError: another mode, or a size or cost that is no positive number.
    """
    found: list[dict[str, Any]] = [
        {
            "axis": str(line["axis"]),
            "mode": str(line["mode"]),
            "sizes": [int(size) for size in line["sizes"]],
            "cost": [float(cost) for _, cost in zip(line["sizes"], line["cost"], strict=True)],
        }
        for line in results["series"]
    ]
    titles = [mode.title for mode in MODES]
    numbers = [number for line in found for number in [*line["sizes"], *line["cost"]]]
    if not numbers or not all(0 < number < MOST for number in numbers):
        raise ValueError("sizes and costs are positive numbers")
    if not all(line["mode"] in titles and line["sizes"] for line in found):
        raise ValueError(f"expected the modes {titles}, each with sizes")
    return found

"""What was measured on several ranks, beside what the model of the ring predicts: as ratios, for JSON, tables, picture.

Seconds are in what jobs tell; none leaves this file. Of a network on paper what is kept is how long a step takes beside
sending its gradients once at 10 Gbit/s.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

from minifocal.bench import ring
from minifocal.bench.machine import describe_machine
from minifocal.bench.rank_jobs import ONE_PROCESS, Job, share_of
from minifocal.bench.ring import ETHERNET, MOST_RANKS, Gradients, Link
from minifocal.bench.workloads import Workload

DIGITS = 4
MOST = 1e9  # times as fast: more is no measurement
BEYOND = f"> {MOST_RANKS:,}"
LARGE_BATCH = 1024
"""Images that all machines share on paper: the batch with which FocalNets were trained on ImageNet."""
SHOWN = (16, 128, 1024)
SLOW = ETHERNET["10 Gbit/s"]
NOTHING, NO_TIME = Gradients(0, 1), Link(float("inf"), 0.0)

Told = Mapping[Job, Sequence[Mapping[str, Any]]]


def series(workload: Workload, ops: str, told: Told, cores: int) -> dict[str, Any]:
    """Give the results of one workload and table of operations.

    Args:
        workload: what was measured. ops: with which table.
        told: by the jobs, round by round: see `rank_worker.measure`. cores: of this machine.
    Returns:
        "ranks", and for each "speed" and "predicted": images per second beside those of one process with all cores.
        "samples": the cost of a step in every round, beside the median of one process. "paper": "bytes" and "sums" of a
        step, and "step", how long one process takes beside sending those bytes at 10 Gbit/s; None without an exchange.
    """
    base = _median_step(told[ONE_PROCESS])
    jobs = {job.ranks: job for job in told if job.ranks}  # they grow from 1
    gradients, link = _calibrate(told, cores)
    predicted = []
    for ranks in jobs:
        compute = _median_step(told[jobs[1]])
        if ranks > 1:
            share = str(share_of(workload.batch, ranks))
            compute = median(found["compute"][share] for found in told[jobs[min(ranks, cores)]])
        predicted.append(base / ring.step_on_one_machine(compute, ranks, cores, gradients, link))
    return {
        "workload": workload.name,
        "ops": ops,
        "batch": workload.batch,
        "ranks": list(jobs),
        "speed": [round(base / _median_step(told[job]), DIGITS) for job in jobs.values()],
        "predicted": [round(speed, DIGITS) for speed in predicted],
        "samples": {job.name: [round(found["step"] / base, DIGITS) for found in told[job]] for job in told},
        "paper": _on_paper(base, gradients),
    }


def results(found: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    """Put the series together, with the machine that they were measured on and the number of rounds."""
    return {"machine": describe_machine(), "rounds": rounds, "series": found}


def results_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Lay out what was measured, a line for each job: head, and rows.

    "x one process" and "x 1 rank" say how many times as many images per second it trains; "model" is the first of the
    two as predicted, and "off by" how far the prediction is from what was measured.
    """
    rows = []
    for line in results["series"]:
        name = [line["workload"], line["ops"]]
        alone = line["speed"][line["ranks"].index(1)]
        rows.append([*name, ONE_PROCESS.name, "1.00", f"{1 / alone:.2f}", "", ""])
        for ranks, speed, predicted in zip(line["ranks"], line["speed"], line["predicted"], strict=True):
            model = [f"{predicted:.2f}", f"{predicted / speed - 1:+.1%}"] if ranks > 1 else ["", ""]
            rows.append([*name, Job(ranks).name, f"{speed:.2f}", f"{speed / alone:.2f}", *model])
    return ["workload", "ops", "", "x one process", "x 1 rank", "model", "off by"], rows


def paper_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Lay out what the model says of machines like this one over a network: head, and rows.

    They give the speed-up with some numbers of machines, and with how many each does less than half of what it does
    alone.
    """
    rows = []
    for line in curves(results["series"]):
        speeds = [f"{line['speed_up'][line['ranks'].index(ranks)]:.3g}" for ranks in SHOWN]
        half = BEYOND if line["half"] is None else f"{line['half']:,}"
        rows.append([line["workload"], line["ops"], line["network"], line["images"], *speeds, half])
    return ["workload", "ops", "network", "images", *(f"x on {ranks:,}" for ranks in SHOWN), "half from"], rows


def curves(series: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Work out the speed-up of 1 to MOST_RANKS machines over networks, from what was measured on one.

    Returns:
        for each series, network and way to share images: "workload", "ops", "network"; "images", in words, and "weak",
        whether each machine has a batch of its own; "ranks" and "speed_up"; and "half", the number of machines from
        which each does less than half of what it does alone, or None where that is never so.
    """
    found = []
    for line in series:
        if line["paper"] is None:
            continue
        gradients = Gradients(line["paper"]["bytes"], line["paper"]["sums"])
        step = line["paper"]["step"] * _sending(gradients)
        whole = step * LARGE_BATCH / line["batch"]
        for network, link in ETHERNET.items():
            name = {"workload": line["workload"], "ops": line["ops"], "network": network}
            weak = partial(ring.weak_efficiency, compute=step, gradients=gradients, link=link)
            strong = partial(ring.strong_efficiency, compute=whole, gradients=gradients, link=link)
            found.append({**name, "images": f"{line['batch']} each", "weak": True, **_curve(weak)})
            found.append({**name, "images": f"{LARGE_BATCH:,} in all", "weak": False, **_curve(strong)})
    return found


def read_series(results: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Give the series, and the curves on paper, for a picture, read one by one: results from a file may hold anything.

    Raises:
        ValueError: no series, ranks that do not grow from 1, or a number that is not positive.
    """
    found = [_read_line(line) for line in results["series"]]
    if not found:
        raise ValueError("expected one series at least")
    return found, curves(found)


def _read_line(line: Mapping[str, Any]) -> dict[str, Any]:
    ranks = [int(count) for count in line["ranks"]]
    read: dict[str, Any] = {"workload": str(line["workload"]), "ops": str(line["ops"]), "batch": int(line["batch"])}
    read |= {"ranks": ranks, "paper": None}
    for name in ("speed", "predicted"):
        read[name] = [float(value) for _, value in zip(ranks, line[name], strict=True)]
    numbers = [read["batch"], *ranks, *read["speed"], *read["predicted"]]
    if line["paper"] is not None:
        of_ring = line["paper"]
        read["paper"] = {"bytes": int(of_ring["bytes"]), "sums": int(of_ring["sums"]), "step": float(of_ring["step"])}
        numbers += read["paper"].values()
    if ranks[0] != 1 or ranks != sorted(set(ranks)):
        raise ValueError(f"expected numbers of ranks that grow from 1, got {ranks}")
    if not all(0 < number < MOST for number in numbers):
        raise ValueError("ranks, speeds, bytes and times are positive numbers")
    return read


def _median_step(told: Sequence[Mapping[str, Any]]) -> float:
    return median(found["step"] for found in told)


def _calibrate(told: Told, cores: int) -> tuple[Gradients, Link]:
    """Give what a step sums, and the link between two ranks, found where most of them have a core of their own."""
    several = [job for job in told if job.ranks > 1]
    if not several:
        return NOTHING, NO_TIME
    job = max((job for job in several if job.ranks <= cores), default=several[0])
    sums = told[job][0]["sums"]
    large, small = (
        (
            Gradients(told[job][0][size][0], sums),
            median(found[size][1] for found in told[job]) / ring.crowding(job.ranks, cores),
        )
        for size in ("large", "small")
    )
    return large[0], ring.fit_link(job.ranks, large, small)


def _on_paper(step: float, gradients: Gradients) -> dict[str, Any] | None:
    if gradients == NOTHING:
        return None
    return {**gradients._asdict(), "step": round(step / _sending(gradients), DIGITS)}


def _sending(gradients: Gradients) -> float:
    """The seconds in which a slow network sends the gradients once."""
    return gradients.bytes / SLOW.bandwidth


def _curve(efficiency: Callable[[int], float]) -> dict[str, Any]:
    ranks = [2**power for power in range(MOST_RANKS.bit_length())]
    return {
        "ranks": ranks,
        "speed_up": [count * efficiency(count) for count in ranks],
        "half": ring.first_below(efficiency),
    }

"""One rank of a job that is timed: `mpiexec -n 2 python -m minifocal.bench.rank_worker` with what to measure.

The first rank writes a line of JSON to standard output.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from minifocal.arrays import Array, random_generator
from minifocal.bench.workloads import LEARNING_RATE, MODES, WORKLOADS, Workload
from minifocal.training.distributed import BatchDraws, GradientExchange, part_of_batch
from minifocal.training.optim import SGD
from minifocal.training.ranks import Ranks, join_ranks
from minifocal.training.step import train_step

WARM_UPS = 2  # calls that are not counted: code is compiled, memory mapped
FEWEST, MOST = 3, 200  # calls that are
SMALL = 16  # times smaller are the arrays that are summed as well, to tell bandwidth and latency apart


def measure(workload: Workload, ops: str, shares: Sequence[int], seconds: float, ranks: Ranks) -> dict[str, Any]:
    """Time training steps of a batch that the ranks share, what each computes of it, and what it sums.

    Args:
        workload: network and batch. ops: name of the table of operations.
        shares: numbers of images whose steps are timed as well, in all ranks at once and without exchange.
        seconds: that each is repeated for, about. ranks: who measures; all must be told the same.
    Returns:
        "step": seconds of a step. "compute": seconds by number of images. "sums", of several ranks: how many there are
        in a step. "large", "small": bytes of all of them, and of smaller ones, and the seconds that they take.
    Raises:
        InputError: there is no such table.
    """
    model = workload.model(ops)
    optimizer = SGD(model, lr=LEARNING_RATE)
    exchange = GradientExchange(model, ranks) if ranks.size > 1 else None
    images, labels = workload.draw(MODES["train"])
    part, weight = part_of_batch(ranks, len(images))
    draws: Any = BatchDraws(random_generator(0), len(images), part)
    step = partial(train_step, model, optimizer, images[part], labels[part], draws, weight=weight, exchange=exchange)
    found: dict[str, Any] = {"step": _seconds(step, seconds, ranks), "compute": {}}
    for count in shares:
        alone = partial(train_step, model, optimizer, images[:count], labels[:count], None)
        found["compute"][str(count)] = _seconds(alone, seconds, ranks)
    if exchange is not None:
        losses = np.zeros(2)  # a step sums them behind the gradients
        arrays = [*(bucket.values for bucket in exchange.buckets), losses]
        for name, parts in ("large", arrays), ("small", [array[: -(-array.size // SMALL)] for array in arrays]):
            for array in parts:
                array[...] = 0.0  # sums of sums would leave the range of numbers
            found[name] = [sum(array.nbytes for array in parts), _seconds(partial(_sum, parts, ranks), seconds, ranks)]
        found["sums"] = len(arrays)
    return found


def _sum(arrays: Sequence[Array], ranks: Ranks) -> None:
    for under_way in [ranks.start_sum(array) for array in arrays]:
        under_way.wait()


def _seconds(run: Callable[[], object], seconds: float, ranks: Ranks) -> float:
    """Call a function in all ranks, as often as fits into some seconds; give those of a call in the slowest rank."""
    for _ in range(WARM_UPS):
        start = time.perf_counter()
        run()
        last = time.perf_counter() - start
    calls = ranks.from_first(lambda: min(max(FEWEST, round(seconds / last)), MOST))
    start = time.perf_counter()
    for _ in range(calls):
        run()
    ranks.any(False)  # the others are done as well
    return (time.perf_counter() - start) / calls


def main(arguments: Sequence[str]) -> None:
    """Measure as the arguments say; a rank that fails says why, and ends the job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=list(WORKLOADS))
    parser.add_argument("ops")
    parser.add_argument("seconds", type=float)
    parser.add_argument("shares", type=int, nargs="*")
    args = parser.parse_args(arguments)
    ranks = join_ranks()
    try:
        found = measure(WORKLOADS[args.workload], args.ops, args.shares, args.seconds, ranks)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        ranks.abort(1)
        sys.exit(1)  # some launchers take a moment to end it
    if ranks.is_first:
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

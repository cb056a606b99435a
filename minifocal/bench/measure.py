"""Measuring several functions in turns, so that whatever slows the machine down for a while slows all of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from minifocal.errors import InputError

T = TypeVar("T")

MIN_ROUNDS, DEFAULT_ROUNDS = 3, 9
WARM_UPS = 2  # calls of each that are not counted: memory is mapped, code compiled
PAUSE = 0.05  # seconds before each call, for threads of the last one to stop spinning


class NotMeasuredError(InputError):
    """One thing cannot be measured on this machine; all others can."""


def on_the_clock(run: Callable[[], object]) -> float:
    """Call a function after a pause; give the seconds that it took."""
    time.sleep(PAUSE)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turn(things: Sequence[T], number: int) -> list[T]:
    """Give the order in which things are measured in a round: each round starts with another one."""
    first = number % len(things)
    return [*things[first:], *things[:first]]


def interleave(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    progress: Callable[[], object] = lambda: None,
    clock: Callable[[Callable[[], Any]], float] = on_the_clock,
) -> dict[str, list[float]]:
    """Time every function once a round; each round starts with another one.

    Args:
        runs: functions by name.
        rounds: how many; WARM_UPS rounds go before them.
        progress: called after every call of a function.
        clock: calls a function and gives the seconds that it took.
    Returns:
        seconds of each, round by round.
    """
    names = list(runs)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-WARM_UPS, rounds):
        for name in in_turn(names, number):
            elapsed = clock(runs[name])
            if number >= 0:
                samples[name].append(elapsed)
            progress()
    return samples

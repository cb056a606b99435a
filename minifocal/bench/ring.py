"""How long a step on several ranks takes, worked out: what each rank computes, and what of the exchange is not hidden.

A ring sums an array over n ranks in 2(n - 1) rounds: the array is cut into n pieces, and in every round each rank sends
one piece to its neighbour. In the first n - 1 rounds the pieces grow to sums, in the others the sums go round. So each
sends 2(n - 1)/n of the array, hardly more with many ranks than with few; what grows with them is the number of rounds.
"""

from collections.abc import Callable
from typing import NamedTuple

BACKWARD = 2 / 3
"""Share of a step that is its way back, beside which gradients are summed: it makes two of three products."""
MOST_RANKS = 1024


class Link(NamedTuple):
    """What carries a message from one rank to the next: bytes per second, and seconds until the first one is there."""

    bandwidth: float
    latency: float


class Gradients(NamedTuple):
    """What a step sums over the ranks.

    Attributes:
        bytes: of all gradients. sums: in which they are summed, one after the other, each as soon as it is complete.
    """

    bytes: int
    sums: int


ETHERNET = {
    "10 Gbit/s": Link(10e9 / 8, 20e-6),
    "100 Gbit/s": Link(100e9 / 8, 5e-6),
}
"""Networks on paper. 20 µs from program to program are what Hurwitz and Feng measured with TCP ("Initial End-to-End
Performance Evaluation of 10-Gigabit Ethernet", 2003); 5 µs, with cards that read memory themselves, are assumed."""


def exchange(ranks: int, gradients: Gradients, link: Link) -> float:
    """Give the seconds that summing the gradients takes while nothing else is done."""
    rounds = 2 * (ranks - 1)
    return rounds / ranks * gradients.bytes / link.bandwidth + rounds * link.latency * gradients.sums


def fit_link(ranks: int, large: tuple[Gradients, float], small: tuple[Gradients, float]) -> Link:
    """Find the link from two measurements: `exchange` gives the seconds of both back.

    Args:
        ranks: that summed, at least 2.
        large, small: what they summed, in equally many sums, and the seconds that it took.
    """
    (most, longest), (least, shortest) = large, small
    rounds = 2 * (ranks - 1)
    of_a_byte = (longest - shortest) / (most.bytes - least.bytes)
    if of_a_byte <= 0.0:  # noise: all of the time is then latency
        return Link(float("inf"), longest / (rounds * most.sums))
    latency = (longest - of_a_byte * most.bytes) / (rounds * most.sums)
    if latency < 0.0:  # noise: all of the time is then bandwidth
        of_a_byte, latency = longest / most.bytes, 0.0
    return Link(rounds / ranks / of_a_byte, latency)


def exposed(exchange: float, backward: float, sums: int) -> float:
    """Give the seconds of an exchange by which it outlasts the way back.

    Sums are equally long and made one after the other; the i-th of k may begin when i/k of the way back is done. So
    i of them wait for the way back and the other k - i + 1 follow: the last sum is never hidden, and all but the first
    share of the way back can hide others.

    Args:
        exchange: seconds of all sums. backward: seconds of the way back beside which they run; 0 where the processor
            that computes also moves the data. sums: how many.
    """
    return max(exchange / sums, exchange - backward * (1 - 1 / sums))


def crowding(ranks: int, cores: int) -> float:
    """Give how many times as long all takes where ranks of one thread share the cores of one machine."""
    return max(1.0, ranks / cores)


def step_on_one_machine(compute: float, ranks: int, cores: int, gradients: Gradients, link: Link) -> float:
    """Give the seconds of a step whose ranks are processes of one machine, each with one thread.

    The cores that compute also copy and add what the ranks exchange: nothing is hidden.

    Args:
        compute: seconds of one rank's share of the batch, without exchange, on a core of its own.
        ranks: how many. cores: of the machine.
        gradients: summed in a step. link: between two processes on cores of their own.
    """
    return crowding(ranks, cores) * (compute + exchange(ranks, gradients, link))


def step_over_network(compute: float, ranks: int, gradients: Gradients, link: Link) -> float:
    """Give the seconds of a step whose ranks are machines, where network cards move the data beside the way back.

    Args:
        compute: seconds of one machine's share of the batch. ranks: how many machines.
        gradients: summed in a step. link: between machines.
    """
    if ranks == 1:
        return compute
    return compute + exposed(exchange(ranks, gradients, link), BACKWARD * compute, gradients.sums)


def weak_efficiency(ranks: int, compute: float, gradients: Gradients, link: Link) -> float:
    """Give the share of n times one machine's speed that n machines reach, each with a batch of the same size.

    Args:
        ranks: n. compute: seconds of a step of one machine alone. gradients, link: as in `step_over_network`.
    """
    return compute / step_over_network(compute, ranks, gradients, link)


def strong_efficiency(ranks: int, compute: float, gradients: Gradients, link: Link) -> float:
    """Give the share of n times one machine's speed that n machines reach which share one batch.

    Args:
        ranks: n. compute: seconds of one machine for the whole batch; a part is taken to need its part of them.
        gradients, link: as in `step_over_network`.
    """
    part = compute / ranks
    return part / step_over_network(part, ranks, gradients, link)


def first_below(efficiency: Callable[[int], float], floor: float = 0.5) -> int | None:
    """Give the smallest number of ranks with which an efficiency is below a floor, or None up to MOST_RANKS."""
    return next((ranks for ranks in range(1, MOST_RANKS + 1) if efficiency(ranks) < floor), None)

"""The model of steps on several ranks beside numbers worked out by hand, and beside a ring played through."""

import json
import re
from pathlib import Path

import pytest

from minifocal.bench import rank_jobs, rank_results, ring
from minifocal.bench.ring import Gradients, Link
from minifocal.cli import main

ROOT = Path(__file__).parents[2]

HUNDRED = Gradients(bytes=100, sums=5)
TEN_A_SECOND = Link(bandwidth=10.0, latency=0.5)


def test_the_ring_by_hand():
    # 2 ranks: each sends half of the 100 bytes twice, 10 a second; 2 rounds of half a second in each of 5 sums.
    assert ring.exchange(2, HUNDRED, TEN_A_SECOND) == 10.0 + 5.0
    # 4 ranks: six times a quarter of them, and 6 rounds.
    assert ring.exchange(4, HUNDRED, TEN_A_SECOND) == 15.0 + 15.0
    assert ring.exchange(1, HUNDRED, TEN_A_SECOND) == 0.0


@pytest.mark.parametrize(("ranks", "pieces"), [(2, 8), (3, 9), (4, 8), (7, 21)])
def test_the_ring_sends_what_a_ring_does(ranks, pieces):
    """A ring of lists, played through: rounds and numbers that each rank sends are those of the formula."""
    held = [[rank * 100.0 + index for index in range(pieces)] for rank in range(ranks)]
    expected = [sum(column) for column in zip(*held, strict=True)]
    size = pieces // ranks
    sent = rounds = 0
    for number in range(2 * (ranks - 1)):
        grows = number < ranks - 1
        shift = number if grows else number - ranks
        messages = [(rank, (rank - shift) % ranks * size) for rank in range(ranks)]
        parts = [held[rank][start : start + size] for rank, start in messages]
        for (rank, start), part in zip(messages, parts, strict=True):
            target = held[(rank + 1) % ranks]
            for offset, value in enumerate(part, start):
                target[offset] = target[offset] + value if grows else value
        sent, rounds = sent + size, rounds + 1
    assert held == [expected] * ranks
    assert ring.exchange(ranks, Gradients(pieces, 1), Link(1.0, 0.0)) == pytest.approx(sent)
    assert ring.exchange(ranks, Gradients(pieces, 1), Link(float("inf"), 1.0)) == rounds


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_link_is_found_from_two_measurements(ranks):
    few = HUNDRED._replace(bytes=10)
    seconds = [ring.exchange(ranks, sizes, TEN_A_SECOND) for sizes in (HUNDRED, few)]
    found = ring.fit_link(ranks, (HUNDRED, seconds[0]), (few, seconds[1]))
    assert found == pytest.approx(TEN_A_SECOND)


@pytest.mark.parametrize("seconds", [(1.0, 2.0), (1.0, 0.01)])
def test_a_link_from_noise_still_gives_the_longer_measurement_back(seconds):
    """More bytes that take less time, or so much more that no latency is left."""
    found = ring.fit_link(2, (HUNDRED, seconds[0]), (HUNDRED._replace(bytes=10), seconds[1]))
    assert found.bandwidth > 0.0
    assert found.latency >= 0.0
    assert ring.exchange(2, HUNDRED, found) == pytest.approx(seconds[0])


def finish_of_all_sums(backward, lengths):
    """Play it through: a sum begins when its gradients are complete and the sum before it is done."""
    now = 0.0
    for number, length in enumerate(lengths, 1):
        now = max(now, backward * number / len(lengths)) + length
    return now


@pytest.mark.parametrize("sums", [1, 2, 5, 21])
@pytest.mark.parametrize("exchange", [0.0, 0.3, 1.0, 4.0])
def test_what_is_not_hidden_is_by_how_much_the_last_sum_outlasts_the_way_back(sums, exchange):
    backward = 1.0
    late = finish_of_all_sums(backward, [exchange / sums] * sums) - backward
    assert ring.exposed(exchange, backward, sums) == pytest.approx(late, abs=1e-12)
    assert ring.exposed(exchange, 0.0, sums) == exchange


def test_a_step_on_one_machine_shares_the_cores_and_hides_nothing():
    assert ring.step_on_one_machine(7.0, 1, 2, HUNDRED, TEN_A_SECOND) == 7.0
    assert ring.step_on_one_machine(7.0, 2, 2, HUNDRED, TEN_A_SECOND) == 7.0 + 15.0
    assert ring.step_on_one_machine(7.0, 4, 2, HUNDRED, TEN_A_SECOND) == 2 * (7.0 + 30.0)
    assert ring.step_on_one_machine(7.0, 2, 8, HUNDRED, TEN_A_SECOND) == 7.0 + 15.0


def test_efficiency_of_machines_that_have_a_batch_each_and_that_share_one():
    # Two machines: 15 s of exchange. Of 30 s of computing 20 are the way back, beside which only the last of five sums
    # is not made.
    assert ring.weak_efficiency(2, 30.0, HUNDRED, TEN_A_SECOND) == pytest.approx(30 / 33)
    # Half of the batch each: 10 s of way back, of which four fifths hide something.
    assert ring.strong_efficiency(2, 30.0, HUNDRED, TEN_A_SECOND) == pytest.approx(15 / (15 + 15 - 8))
    for efficiency in (ring.weak_efficiency, ring.strong_efficiency):
        assert efficiency(1, 30.0, HUNDRED, TEN_A_SECOND) == 1.0


def test_the_first_number_of_ranks_below_a_half():
    assert ring.first_below(lambda ranks: 1 / ranks) == 3
    assert ring.first_below(lambda ranks: 10 / (9 + ranks)) == 12
    assert ring.first_below(lambda ranks: 0.5) is None


def test_the_table_of_the_readme_is_what_was_measured():
    series = json.loads((ROOT / "figures" / "ranks.json").read_text(encoding="utf-8"))["series"]
    table = re.findall(r"^\| (\w+), (\w+) \|(.*)\|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    shown = {(workload, ops): [cell.strip() for cell in cells.split("|")] for workload, ops, cells in table}
    assert len(shown) == len(series) == 4
    for line in series:
        assert line["ranks"] == [1, 2, 4]
        pairs = zip(line["speed"], line["predicted"], strict=True)
        one, *others = ((f"{speed:.2f}", f"{predicted:.2f}") for speed, predicted in pairs)
        expected = [one[0], *(cell for pair in others for cell in pair)]
        assert shown[line["workload"], line["ops"]] == expected


def test_what_the_readme_says_of_machines_on_paper_follows_from_what_was_measured():
    results = json.loads((ROOT / "figures" / "ranks.json").read_text(encoding="utf-8"))
    _, curves = rank_results.read_series(results)
    half = {(c["workload"], c["network"]): c["half"] for c in curves if c["ops"] == "numba" and not c["weak"]}
    assert all(curve["half"] is None for curve in curves if curve["weak"])
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    slow, fast = "10 Gbit/s", "100 Gbit/s"
    assert (
        f"`small` falls below half from {half['small', slow]:,} machines on and `tiny_srf` from "
        f"{half['tiny_srf', slow]:,} ({half['small', fast]:,} and {half['tiny_srf', fast]:,} over {fast})"
    ) in text


def test_one_rank_alone_is_measured_and_nothing_follows_on_paper(monkeypatch, capsys):
    told = {rank_jobs.ONE_PROCESS: 2.0, rank_jobs.Job(1): 4.0}
    monkeypatch.setattr(rank_jobs, "find_mpiexec", lambda: "mpiexec")
    monkeypatch.setattr(
        rank_jobs, "time_jobs", lambda jobs, *_: {job: [{"step": told[job], "compute": {}}] * 3 for job in jobs}
    )
    assert main(["bench", "--ranks", "1", "--rounds", "3", "--ops", "numpy"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^small +numpy +1 rank +0\.50 +1\.00$", out, re.MULTILINE)
    assert "on paper" not in out
